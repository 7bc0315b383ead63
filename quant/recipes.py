"""File types (such as q4_k_m) and the tensor types that each assigns, as in llama-quantize.

`assign` gives the types that `llama_model_quantize` of llama-cpp-python 0.3.36 gives to the same tensors (src/llama-quant.cpp,
`llama_tensor_get_type`). The rules are in `rules`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from quant import rules
from quant.errors import InputError
from quant.options import TypeOptions
from quant.rules import Role, TensorPlace
from quant.types import (
    BF16,
    F16,
    F32,
    IQ1_M,
    IQ1_S,
    IQ2_S,
    IQ2_XS,
    IQ2_XXS,
    IQ3_S,
    IQ3_XXS,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q1_0,
    Q2_0,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TQ1_0,
    TQ2_0,
    TensorType,
    is_type,
    nearest,
)


@dataclass(frozen=True)
class TypeRecipe:
    """A file type: its name, its number in `general.file_type` (`enum llama_ftype`) and the type of most tensors."""

    name: str
    file_type: int
    base: TensorType


RECIPES: Mapping[str, TypeRecipe] = {
    recipe.name: recipe
    for recipe in (
        TypeRecipe("f32", 0, F32),
        TypeRecipe("f16", 1, F16),
        TypeRecipe("bf16", 32, BF16),
        TypeRecipe("q8_0", 7, Q8_0),
        TypeRecipe("q6_k", 18, Q6_K),
        TypeRecipe("q5_k_m", 17, Q5_K),
        TypeRecipe("q5_k_s", 16, Q5_K),
        TypeRecipe("q5_0", 8, Q5_0),
        TypeRecipe("q5_1", 9, Q5_1),
        TypeRecipe("q4_k_m", 15, Q4_K),
        TypeRecipe("q4_k_s", 14, Q4_K),
        TypeRecipe("q4_0", 2, Q4_0),
        TypeRecipe("q4_1", 3, Q4_1),
        TypeRecipe("q3_k_l", 13, Q3_K),
        TypeRecipe("q3_k_m", 12, Q3_K),
        TypeRecipe("q3_k_s", 11, Q3_K),
        TypeRecipe("q2_k", 10, Q2_K),
        TypeRecipe("iq4_nl", 25, IQ4_NL),
        TypeRecipe("iq4_xs", 30, IQ4_XS),
        TypeRecipe("q2_k_s", 21, Q2_K),
        TypeRecipe("iq3_m", 27, IQ3_S),
        TypeRecipe("iq3_s", 26, IQ3_S),
        TypeRecipe("iq3_xs", 22, IQ3_S),
        TypeRecipe("iq3_xxs", 23, IQ3_XXS),
        TypeRecipe("iq2_m", 29, IQ2_S),
        TypeRecipe("iq2_s", 28, IQ2_XS),
        TypeRecipe("iq2_xs", 20, IQ2_XS),
        TypeRecipe("iq2_xxs", 19, IQ2_XXS),
        TypeRecipe("iq1_m", 31, IQ1_M),
        TypeRecipe("iq1_s", 24, IQ1_S),
        TypeRecipe("tq1_0", 36, TQ1_0),
        TypeRecipe("tq2_0", 37, TQ2_0),
        TypeRecipe("q2_0", 41, Q2_0),
        TypeRecipe("q1_0", 40, Q1_0),
        TypeRecipe("mxfp4_moe", 38, MXFP4),
    )
}


ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""Other names of llama-quantize for its medium recipes (`QUANT_OPTIONS` of tools/quantize/quantize.cpp)."""


def recipe(name: str) -> TypeRecipe:
    """The recipe called `name`, in either case.

    Raises InputError with similar names, or if the type exists but cannot be written.
    """
    wanted = name.lower()
    found = RECIPES.get(ALIASES.get(wanted, wanted))
    if found is None and is_type(name):
        can = ", ".join(RECIPES)
        raise InputError(f"type {name} exists in ggml but cannot be written by tinyq; choose one of {can}")
    if found is None:
        raise InputError(f"type {name} does not exist; similar types are {nearest(name, RECIPES)}")
    return found


def require_importance(
    wanted: TypeRecipe, tensors: Sequence[TensorFacts], choices: Sequence[TypeChoice], covered: Collection[str]
) -> None:
    """Raise InputError for the first tensor whose type needs an importance matrix that does not cover it.

    `covered` has the names of the tensors with importances. Tensors that are copied in their own type need none.
    """
    for tensor, choice in zip(tensors, choices, strict=True):
        if choice.kept or tensor.source is choice.type or choice.name in covered:
            continue
        if rules.needs_importance(wanted.name, choice.type, choice.name):
            has = "the importance matrix does not cover it" if covered else "there is none"
            raise InputError(
                f"tensor {choice.name} needs an importance matrix to be written as {choice.type.name}, and {has}; "
                "make one with `tinyq imatrix` and give it with --imatrix, or choose another type"
            )


WITHOUT_LAYERS = frozenset({"clip"})
"""Architectures without `block_count`: projectors of vision and audio models (mmproj files)."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The facts about a model that the rules depend on.

    `arch` is llama.cpp's name; `n_layer` is `block_count`, including `n_layer_nextn` multi-token prediction (MTP) layers;
    `n_head` and `n_head_kv` are those of layer 0 (0 if it has no attention); `has_imatrix` says whether an importance matrix
    is used, even one without some of the tensors.
    """

    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0
    has_imatrix: bool = False
    n_layer_nextn: int = 0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], *, has_imatrix: bool = False) -> ModelFacts:
        """Facts from a GGUF's metadata (numbers, text, or sequences of numbers; of values per layer that of layer 0 is used).
        Raises InputError if the architecture or the layer count is missing."""
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str):
            raise InputError(
                "general.architecture is missing or not text; expected the name of the model's architecture"
            )

        def number(key: str, default: int) -> int:
            value = metadata.get(f"{arch}.{key}", default)
            if isinstance(value, Sequence) and not isinstance(value, str) and value:
                value = value[0]
            if not hasattr(value, "__index__"):
                raise InputError(f"{arch}.{key} is {value!r}; expected a whole number")
            return int(value)

        n_layer = number("block_count", 0)
        if n_layer <= 0 and arch not in WITHOUT_LAYERS:
            raise InputError(f"{arch}.block_count is {n_layer}; expected the number of layers")
        nextn = number("nextn_predict_layers", 0)
        # For two architectures llama.cpp counts more layers than the file's block_count (their load_arch_hparams).
        if arch == "nanbeige":
            n_layer *= number("num_loops", 1)
        elif arch == "graniteswitch":
            n_layer, nextn = n_layer - nextn + 1, 1
        n_head = number("attention.head_count", 0)
        return cls(
            arch=arch,
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=number("attention.head_count_kv", n_head),
            n_expert=number("expert_count", 0),
            has_imatrix=has_imatrix,
            n_layer_nextn=nextn,
        )


@dataclass(frozen=True)
class TensorFacts:
    """A tensor's name and shape (numpy order: the last axis is the row), and its type if it is not quantized.

    llama_model_quantize copies tensors that it does not quantize, so for `tinyq quantize` `source` is the input file's type (a
    BF16 router stays BF16). A converter writes norms, biases, routers and similar tensors as F32 (the default) for all types in
    the checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    source: TensorType = F32


@dataclass(frozen=True, kw_only=True)
class TypeChoice:
    """The type assigned to a tensor.

    `wanted` is the type by the recipe or an option; it differs from `type` if rows are not whole blocks of it. `kept` tensors
    are never quantized. `asked_for` says that the user named the type for this tensor: by an override, or as the type of the
    output or the embedding. `reason` is a short explanation: why it is kept, why it fell back, or which option decided; empty
    if the recipe's rules decided.
    """

    name: str
    type: TensorType
    wanted: TensorType
    reason: str = ""
    kept: bool = False
    asked_for: bool = False

    @property
    def fell_back(self) -> bool:
        """Whether `type` differs from `wanted` because rows are not whole blocks."""
        return self.type is not self.wanted


_LAYER = re.compile(r"blk\.(\d+)")


def layer_of(name: str) -> int:
    """The number in `blk.N.…`, or -1 for a tensor outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


@dataclass
class _Counts:
    """Numbers of tensors seen so far by role, on which the rules of `llama_tensor_get_type_impl` depend instead of on layers."""

    values: int
    seen: Counter[Role] = field(default_factory=Counter)


def assign(
    wanted: TypeRecipe, model: ModelFacts, tensors: Sequence[TensorFacts], options: TypeOptions | None = None
) -> tuple[TypeChoice, ...]:
    """The type of each tensor by a recipe, in the given order.

    As in `llama_model_quantize`, with three differences: the last override decides; overrides also apply to f32, f16 and bf16,
    where llama.cpp ignores them; and types given by `output_type` or `embedding_type` fall back if rows are not whole blocks,
    where llama.cpp aborts. All tensors of the file must be given, because rules depend on their number.
    Raises InputError if an override matches no quantized tensor, or if a feed-forward tensor of an MoE model is in no layer.
    """
    options = options or TypeOptions()
    _check_overrides(model, tensors, options)
    names = {tensor.name for tensor in tensors}
    tied = "output.weight" not in names
    counts = _Counts(values=sum(rules.role_of(name) is Role.ATTN_V for name in names))
    order = range(len(tensors))
    walk = order if options.file_order else sorted(order, key=lambda at: _loader_order(tensors[at].name))
    choices = {at: _choose(wanted, model, tensors[at], options, tied, counts) for at in walk}
    return tuple(choices[at] for at in order)


def _loader_order(name: str) -> tuple[int, bytes]:
    """The sort key of llama.cpp's loader (`weight_name_comparer`): by layer, then by the bytes of the name."""
    return layer_of(name), name.encode()


def _check_overrides(model: ModelFacts, tensors: Sequence[TensorFacts], options: TypeOptions) -> None:
    open_names = [t.name for t in tensors if rules.left_alone(model.arch, t.name, t.shape) is None]
    for override in options.overrides:
        if not any(override.pattern.search(name) for name in open_names):
            raise InputError(
                f"tensor type {override.pattern.pattern}={override.type.name} matches none of the {len(open_names)} "
                "tensors that can be quantized; list them with `tinyq inspect`"
            )


def _choose(
    wanted: TypeRecipe, model: ModelFacts, tensor: TensorFacts, options: TypeOptions, tied: bool, counts: _Counts
) -> TypeChoice:
    """One tensor's choice (`llama_tensor_get_type`); advances `counts`."""
    why = rules.left_alone(model.arch, tensor.name, tensor.shape)
    if why is not None:
        return TypeChoice(name=tensor.name, type=tensor.source, wanted=tensor.source, reason=why, kept=True)
    decision = _by_option(tensor.name, options)
    if decision is None and not options.pure and not wanted.base.plain:
        decision = _by_recipe(wanted, model, tensor, options, tied, counts)
    dtype, reason, asked_for = decision or _Decision(wanted.base)
    fits = rules.fitting(dtype, tensor.shape[-1])
    if fits is not dtype:
        reason = f"rows of {tensor.shape[-1]} are not a multiple of {dtype.block}"
    return TypeChoice(name=tensor.name, type=fits, wanted=dtype, reason=reason, asked_for=asked_for)


class _Decision(NamedTuple):
    """A type, and the `reason` and `asked_for` of the TypeChoice that it leads to."""

    type: TensorType
    reason: str = ""
    asked_for: bool = False


def _by_option(name: str, options: TypeOptions) -> _Decision | None:
    """The type that an option gives to a tensor, independent of the recipe, or None."""
    role = rules.role_of(name)
    override = options.override(name)
    # The table of per-layer embeddings gets the embedding's type unless an override matches it.
    follows = name == "token_embd.weight" or override is None
    if role is Role.EMBEDDING and options.embedding_type is not None and follows:
        return _Decision(options.embedding_type, "embedding type", asked_for=True)
    if role is Role.OUTPUT and options.output_type is not None:
        return _Decision(options.output_type, "output type", asked_for=True)
    if override is not None:
        return _Decision(override.type, f"override {override.pattern.pattern}", asked_for=True)
    if name in options.types:
        return _Decision(options.types[name], options.types_reason)
    return None


def _by_recipe(
    wanted: TypeRecipe, model: ModelFacts, tensor: TensorFacts, options: TypeOptions, tied: bool, counts: _Counts
) -> _Decision:
    """The type by the rules of a quantized recipe (`llama_tensor_get_type_impl`); advances `counts`."""
    name = tensor.name
    if rules.at_least_q8_0(model.arch, name):
        return _Decision(Q8_0)
    role = rules.role_of(name)
    if role is Role.OUTPUT or (role is Role.EMBEDDING and tied):
        if options.output_type is not None:
            return _Decision(options.output_type, "output type", asked_for=True)
        return _Decision(rules.for_output(wanted.name, wanted.base, model.arch, tensor.shape[-1]))
    if wanted.base is MXFP4:
        return _Decision(rules.for_mixture(tensor.shape, model.arch, role))
    place = _place(model, role, name, counts)
    counts.seen[role] += 1
    seventy_b = rules.is_seventy_b(model.arch, model.n_layer - model.n_layer_nextn, model.n_head, model.n_head_kv)
    return _Decision(rules.by_role(wanted.name, wanted.base, role, place, seventy_b))


def _place(model: ModelFacts, role: Role, name: str, counts: _Counts) -> TensorPlace:
    """The position of a tensor for the rules: its index among the tensors of its role, or its layer for experts' feed-forwards.

    Raises InputError if an expert's feed-forward tensor is in no layer.
    """
    index, count = counts.seen[role], model.n_layer
    if role is Role.ATTN_V:
        count = counts.values
    elif role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN) and model.n_expert > 1:
        # MoE models can have several such tensors per layer, so the layer is taken from the name.
        index = layer_of(name)
        if not 0 <= index < model.n_layer:
            raise InputError(
                f"tensor {name} is in none of the {model.n_layer} layers; expected blk.N. with N below {model.n_layer}"
            )
    gqa = model.n_head // model.n_head_kv if model.n_head_kv else 0
    return TensorPlace(
        arch=model.arch,
        index=index,
        count=count,
        seen=counts.seen[role],
        gqa=gqa,
        experts=model.n_expert,
        has_imatrix=model.has_imatrix,
    )
