"""The rules of llama-quantize as data: roles of tensors, tensors that are never quantized, and types by role.

They follow src/llama-quant.cpp of llama-cpp-python 0.3.36: `tensor_get_category` (roles), `tensor_allows_quantization`
(tensors that are never quantized), `llama_tensor_get_type_impl` (rules) and `tensor_type_fallback` (rows that are not whole
blocks). `recipes` applies them; tests/quant compares the result with files that llama_model_quantize writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from quant.types import (
    F16,
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
)


class Role(Enum):
    """The roles of tensors that the recipes distinguish."""

    OUTPUT = "output"
    EMBEDDING = "token embedding"
    ATTN_V = "attention values"  # also fused qkv and latent attention's kv_b, which contain the values
    ATTN_K = "attention keys"
    ATTN_Q = "attention queries"
    ATTN_OUTPUT = "attention output"
    FFN_UP = "feed-forward up"
    FFN_GATE = "feed-forward gate"
    FFN_DOWN = "feed-forward down"
    OTHER = "other"


# The first entry whose text occurs in the name decides; output and embeddings are matched by their full name.
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", Role.ATTN_V),
    ("attn_kv_b.weight", Role.ATTN_V),
    ("attn_v.weight", Role.ATTN_V),
    ("attn_k.weight", Role.ATTN_K),
    ("attn_q.weight", Role.ATTN_Q),
    ("attn_output.weight", Role.ATTN_OUTPUT),
    ("ffn_up", Role.FFN_UP),
    ("ffn_gate", Role.FFN_GATE),
    ("ffn_down", Role.FFN_DOWN),
)
_ROLES_BY_NAME = {
    "output.weight": Role.OUTPUT,
    "token_embd.weight": Role.EMBEDDING,
    "per_layer_token_embd.weight": Role.EMBEDDING,
}


def role_of(name: str) -> Role:
    """The role of the tensor named `name` (`tensor_get_category`)."""
    whole = _ROLES_BY_NAME.get(name)
    return whole or next((role for text, role in _ROLES if text in name), Role.OTHER)


# Tensors that are never quantized: (description, texts one of which occurs in the name).
_LEFT_ALONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("norm", ("_norm.weight",)),
    ("router", ("ffn_gate_inp.weight", "ffn_gate_tid2eid.weight")),
    ("convolution", ("ssm_conv1d", "shortconv.conv.weight")),
    ("sparse attention's indexer", ("indexer.k_proj.weight", "indexer.q_proj.weight")),
    (
        "RWKV's time mix",
        tuple(
            f"time_mix_{part}.weight"
            for part in (
                *("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2"),
                *("decay_w1", "decay_w2", "lerp_fused"),
            )
        ),
    ),
    ("Gemma 3n's small projections", ("altup", "laurel", "per_layer_model_proj")),
    ("position bias", ("attn_rel_b.weight", ".rel_pos")),
    (
        "vision or audio",
        (
            *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".patch_embd", ".patch_merger"),
            *("a.rvq.codebook", "mm.a.code_embd"),
        ),
    ),
)
_LEFT_ALONE_BY_NAME = {"position_embd.weight": "position embedding", "token_types.weight": "token types"}
_LEFT_ALONE_BY_ARCH: Mapping[str, tuple[str, ...]] = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate"),
        *("indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight"),
        *("ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}


def left_alone(arch: str, name: str, shape: tuple[int, ...]) -> str | None:
    """Why this tensor is never quantized, or None if it may be (`tensor_allows_quantization`).

    `shape` is in numpy order. Leading axes of length 1 are ignored, so a (1, n) matrix is a vector (`ggml_n_dims`).
    """
    if all(length == 1 for length in shape[:-1]):
        return "vector"
    if not name.endswith("weight"):
        return "not a weight"
    if name in _LEFT_ALONE_BY_NAME:
        return _LEFT_ALONE_BY_NAME[name]
    for what, texts in _LEFT_ALONE:
        if any(text in name for text in texts):
            return what
    if any(text in name for text in _LEFT_ALONE_BY_ARCH.get(arch, ())):
        return f"small tensor of {arch}"
    return None


# Replacements of types with blocks of 256 for rows that are not whole blocks. Rows that are not whole blocks of 32 get F16.
FALLBACKS: Mapping[TensorType, TensorType] = {
    Q2_K: Q4_0,
    Q3_K: Q4_0,
    Q4_K: Q5_0,
    Q5_K: Q5_1,
    Q6_K: Q8_0,
    **dict.fromkeys((IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_XS), IQ4_NL),
    **dict.fromkeys((TQ1_0, TQ2_0, Q2_0), Q4_0),
}


def fitting(dtype: TensorType, columns: int) -> TensorType:
    """`dtype`, or its replacement if rows of `columns` weights are not whole blocks (`tensor_type_fallback`).

    q1_0 and nvfp4, for which llama.cpp has no replacement and refuses such rows, become F16 too."""
    if columns % dtype.block == 0:
        return dtype
    smaller = FALLBACKS.get(dtype, dtype)
    return smaller if columns % smaller.block == 0 else F16


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """The position of a tensor in its model, and the facts that rules depend on.

    `index` of `count`: for attention values, the index among the model's value tensors; for the feed-forward, the layer.
    `seen` is the number of tensors of its role before it. `gqa` is the number of query heads per key/value head in layer 0 (0 if
    that has no attention).
    """

    arch: str
    index: int
    count: int
    seen: int
    gqa: int
    experts: int
    has_imatrix: bool


Condition = Callable[[TensorPlace], bool]


def always(place: TensorPlace) -> bool:
    """Always true."""
    return True


def falcon(place: TensorPlace) -> bool:
    """The architecture is Falcon, which has its own rules."""
    return place.arch == "falcon"


def shared_values(place: TensorPlace) -> bool:
    """Four or more query heads share each value head, so that more bits for the values add little to the size."""
    return place.gqa >= 4


def eight_experts(place: TensorPlace) -> bool:
    """A Mixtral: its attention is so small a part of the model that more bits there add almost nothing to the size."""
    return place.experts == 8


def more_bits(place: TensorPlace) -> bool:
    """In the first or last eighth of the layers, or in every third layer between (`use_more_bits`)."""
    eighth = place.count // 8
    return place.index < eighth or place.index >= 7 * place.count // 8 or (place.index - eighth) % 3 == 2


def among_first(count: int) -> Condition:
    """One of the first `count`."""
    return lambda place: place.index < count


def within_first(part: int) -> Condition:
    """In the first 1/`part` of the layers."""
    return lambda place: place.index < place.count // part


def middle_layers(place: TensorPlace) -> bool:
    """In neither the first nor the last eighth of the layers."""
    return place.count // 8 <= place.index < 7 * place.count // 8


def few_values(place: TensorPlace) -> bool:
    """Values are a small part of the model: shared by four query heads, or beside four experts or more."""
    return place.gqa >= 4 or place.experts >= 4


def first_seen(place: TensorPlace) -> bool:
    """Among as many tensors of its role as an eighth of the layers."""
    return place.seen < place.count // 8


def with_matrix(place: TensorPlace) -> bool:
    """An importance matrix is used."""
    return place.has_imatrix


def both(*conditions: Condition) -> Condition:
    """All conditions hold."""
    return lambda place: all(condition(place) for condition in conditions)


def no(condition: Condition) -> Condition:
    """The condition does not hold."""
    return lambda place: not condition(place)


Rules = tuple[tuple[Condition, TensorType], ...]

VERY_SMALL = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"})
"""Recipes of about 2 bits and less, which llama.cpp gives rules of their own."""

_SMALLEST = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs")
_SMALL = ("iq2_s", "iq2_m")

# Rules by role and recipe: the first rule whose condition holds gives the type; without one it is the base type.
RULES: Mapping[Role, Mapping[str, Rules]] = {
    Role.ATTN_V: {
        "q2_k": ((shared_values, Q4_K), (always, Q3_K)),
        "q3_k_m": ((among_first(2), Q5_K), (always, Q4_K)),
        "q3_k_l": ((always, Q5_K),),
        "q4_k_s": ((among_first(4), Q5_K),),
        "q4_k_m": ((more_bits, Q6_K),),
        "q5_k_m": ((more_bits, Q6_K),),
        "q2_k_s": ((shared_values, Q4_K),),
        "iq4_nl": ((shared_values, Q5_K),),
        "iq4_xs": ((shared_values, Q5_K),),
        "iq3_xxs": ((shared_values, Q4_K), (no(with_matrix), IQ3_S)),
        "iq3_xs": ((shared_values, Q4_K),),
        "iq3_s": ((shared_values, Q4_K),),
        "iq3_m": ((always, Q4_K),),
        **dict.fromkeys(_SMALLEST, ((few_values, Q4_K), (always, Q2_K))),
        **dict.fromkeys(_SMALL, ((few_values, Q4_K), (always, IQ3_S))),
    },
    Role.ATTN_K: {
        "iq3_xs": ((always, IQ3_XXS),),
        "iq3_xxs": ((always, IQ2_S),),
        **dict.fromkeys(VERY_SMALL, ((eight_experts, Q4_K),)),
    },
    Role.ATTN_Q: {
        "iq3_xs": ((always, IQ3_XXS),),
        "iq3_xxs": ((always, IQ2_S),),
    },
    Role.FFN_GATE: {"iq3_xs": ((middle_layers, IQ3_XXS),)},
    Role.FFN_UP: {"iq3_xs": ((middle_layers, IQ3_XXS),)},
    Role.FFN_DOWN: {
        "q2_k": ((always, Q3_K),),
        "q3_k_m": ((within_first(16), Q5_K), (both(falcon, no(more_bits)), Q3_K), (always, Q4_K)),
        "q3_k_l": ((falcon, Q4_K), (always, Q5_K)),
        "q4_k_s": ((both(no(falcon), within_first(8)), Q5_K),),
        "q4_k_m": (
            (both(falcon, within_first(16)), Q6_K),
            (both(falcon, more_bits), Q5_K),
            (both(no(falcon), more_bits), Q6_K),
        ),
        "q5_k_m": ((more_bits, Q6_K),),
        "iq4_nl": ((both(no(with_matrix), within_first(8)), Q5_K),),
        "iq4_xs": ((both(no(with_matrix), within_first(8)), Q5_K),),
        # With an importance matrix these two types can fail in the first layers; without one llama.cpp keeps its old rule.
        "q4_0": ((both(with_matrix, within_first(8)), Q4_1),),
        "q5_0": ((both(with_matrix, within_first(8)), Q5_1),),
        "q2_k_s": ((within_first(8), Q4_K),),
        "iq3_xxs": ((both(no(with_matrix), within_first(8)), Q4_K), (no(with_matrix), Q3_K)),
        "iq3_m": ((within_first(8), Q4_K), (both(eight_experts, more_bits), Q4_K)),
        **dict.fromkeys(_SMALLEST, ((first_seen, Q2_K),)),
        **dict.fromkeys(_SMALL, ((first_seen, IQ3_S),)),
    },
    Role.ATTN_OUTPUT: {
        "q2_k": ((falcon, Q2_K), (eight_experts, Q5_K), (always, Q3_K)),
        "q3_k_s": ((both(no(falcon), eight_experts), Q5_K),),
        "q3_k_m": ((falcon, Q3_K), (eight_experts, Q5_K), (always, Q4_K)),
        "q3_k_l": ((falcon, Q4_K), (eight_experts, Q3_K), (always, Q5_K)),
        "q4_k_s": ((both(no(falcon), eight_experts), Q5_K),),
        "q4_k_m": ((both(no(falcon), eight_experts), Q5_K),),
        "iq4_nl": ((both(no(falcon), eight_experts), Q5_K),),
        "iq4_xs": ((both(no(falcon), eight_experts), Q5_K),),
        "iq3_xs": ((both(no(falcon), eight_experts), Q5_K),),
        "iq3_s": ((both(no(falcon), eight_experts), Q5_K),),
        "iq3_xxs": ((falcon, IQ3_XXS), (eight_experts, Q5_K), (always, IQ3_S)),
        "iq3_m": ((falcon, IQ3_S), (eight_experts, Q5_K), (always, Q4_K)),
        "iq1_s": ((eight_experts, Q5_K), (always, IQ2_XXS)),
        "iq1_m": ((eight_experts, Q5_K), (always, IQ2_XXS)),
        "iq2_xxs": ((eight_experts, Q5_K),),
        "iq2_xs": ((eight_experts, Q5_K),),
        "iq2_s": ((eight_experts, Q5_K), (always, IQ3_S)),
        "iq2_m": ((eight_experts, Q5_K), (always, IQ3_S)),
    },
    # An embedding that is not the output too.
    Role.EMBEDDING: {
        **dict.fromkeys(_SMALLEST, ((always, Q2_K),)),
        **dict.fromkeys((*_SMALL, "iq3_xxs"), ((always, IQ3_S),)),
        **dict.fromkeys(("tq1_0", "tq2_0", "q2_0"), ((always, Q4_K),)),
    },
}

# Architectures and layer counts for which llama.cpp assumes a 70B model with eight query heads per value head.
_SEVENTY_B = frozenset({("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)})
_SEVENTY_B_IF_GROUPED = frozenset({("llama", 80), ("llama-embed", 80)})


def is_seventy_b(arch: str, layers: int, heads: int, kv_heads: int) -> bool:
    """Whether llama.cpp classifies a model of `layers` layers (without MTP layers) as 70B (`LLM_TYPE_70B`)."""
    return (arch, layers) in _SEVENTY_B or ((arch, layers) in _SEVENTY_B_IF_GROUPED and heads != kv_heads)


def by_role(recipe: str, base: TensorType, role: Role, place: TensorPlace, seventy_b: bool) -> TensorType:
    """The type that a recipe gives to a role at a position, before any fallback.

    For `OUTPUT` (also a tied embedding) see `for_output`.
    """
    rules = RULES.get(role, {}).get(recipe, ())
    dtype = next((dtype for condition, dtype in rules if condition(place)), base)
    if recipe in VERY_SMALL:
        return dtype
    if role is Role.ATTN_V and seventy_b and dtype in (Q3_K, Q4_K):
        dtype = Q5_K
    if role in (Role.ATTN_V, Role.ATTN_K) and eight_experts(place):
        dtype = Q8_0
    return dtype


def for_output(recipe: str, base: TensorType, arch: str, columns: int) -> TensorType:
    """The type of the output projection (or of an embedding tied to it), before any fallback; its rows have `columns` weights."""
    if arch == "falcon" or base in (Q8_0, MXFP4):
        return Q8_0
    if recipe in VERY_SMALL or recipe == "iq3_xxs":
        return Q8_0 if columns % base.block else Q5_K
    return Q6_K  # llama.cpp uses Q8_0 directly if rows are not whole blocks, to which Q6_K falls back


def for_mixture(shape: tuple[int, ...], arch: str, role: Role) -> TensorType:
    """The type by the recipe mxfp4_moe: MXFP4 for experts' matrices (numpy order, experts first), Q8_0 for all else."""
    # Of this architecture, projections of its attention have three axes too.
    experts = arch != "bailingmoe3" or role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN)
    return MXFP4 if len(shape) > 2 and shape[-3] > 1 and experts else Q8_0


IMPORTANT = frozenset({IQ3_XXS, IQ2_XXS, IQ2_XS, IQ2_S, IQ1_M, IQ1_S})
"""Types that llama.cpp refuses to write without an importance matrix (`tensor_requires_imatrix`)."""


def needs_importance(recipe: str, dtype: TensorType, name: str) -> bool:
    """Whether a tensor needs an importance matrix to be written as `dtype` in a file of this recipe (`tensor_requires_imatrix`).

    The embedding and the output, for which there is none as a rule, need it only where ggml's encoder does.
    """
    if role_of(name) in (Role.EMBEDDING, Role.OUTPUT):
        return dtype.needs_importance
    return dtype in IMPORTANT or (recipe == "q2_k_s" and dtype is Q2_K)


# Tensors of one architecture that are stored in Q8_0 or better.
_AT_LEAST_Q8_0: Mapping[str, tuple[str, ...]] = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}


def at_least_q8_0(arch: str, name: str) -> bool:
    """Whether an architecture requires at least Q8_0 for this tensor in every quantized recipe."""
    return any(text in name for text in _AT_LEAST_Q8_0.get(arch, ()))
