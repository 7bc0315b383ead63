"""Random specs: a plain decoder with a few features changed, drawn from whatever the spec's classes declare.

The fields of the classes are walked with their types, so that a new option, choice or part is drawn without being named here.
Only sizes, whose values must fit each other, stand in `SIZES`; a size without an entry there is an error that says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from gguf_tools.model.features import Meaning, meaning_of
from gguf_tools.model.spec import Attention, LayerSpec, LayerTensors, Mamba2, Model, ModelSpec, MoE, Norm
from gguf_tools.tensors.base import InMemory
from tests.random_model import filled

VOCAB, HIDDEN, CONTEXT, WIDTH = 64, 64, 96, 96
EPS = 1e-6
"""As of linear attention's keys in transformers' code: llama.cpp has one epsilon for all."""

SIZES: dict[str, Sequence[Any]] = {
    "Norm.eps": (EPS, 1e-5),
    "Attention.heads": (4, 2),
    "Attention.kv_heads": (2, 4, 1),
    "Attention.head_dim": (16, 24),
    "Attention.window": (8,),
    "Attention.value_dim": (8, 24),
    "Rope.theta": (10000.0, 500.0),
    "Rope.dims": (16, 8),
    "LinearScaling.factor": (4.0,),
    "YarnScaling.factor": (4.0,),
    "YarnScaling.original_context": (24,),
    "YarnScaling.beta_fast": (16.0,),
    "YarnScaling.beta_slow": (2.0,),
    "Llama3Scaling.factor": (8.0,),
    "Llama3Scaling.low_freq_factor": (1.0,),
    "Llama3Scaling.high_freq_factor": (4.0,),
    "Llama3Scaling.original_context": (32,),
    "FactorScaling.factors": ((1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 8.0), (1.0, 2.0, 3.0, 4.0)),
    "LongRopeScaling.short": ((1.0, 1.0, 1.0, 1.5, 1.5, 2.0, 2.0, 2.0), (1.0, 1.5, 1.5, 2.0)),
    "LongRopeScaling.long": ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0), (1.0, 2.0, 4.0, 8.0)),
    # llama.cpp takes one set of factors by the size of its context, which the shortest prompts do not fill.
    "LongRopeScaling.original_context": (4096, 1),
    "DeltaNet.key_heads": (2,),
    "DeltaNet.value_heads": (4, 2),
    "DeltaNet.key_dim": (16,),
    "DeltaNet.value_dim": (16, 32),
    "DeltaNet.kernel": (4, 3),
    "DeltaNet.l2_eps": (EPS, 1e-5),
    "ShortConv.kernel": (3, 4),
    "Mamba2.heads": (8,),
    "Mamba2.head_dim": (16,),
    "Mamba2.groups": (2, 1),
    "Mamba2.state": (16,),
    "Mamba2.kernel": (4,),
    "Mamba2.step_limit": ((0.01, 0.5),),
    "GatedMLP.width": (WIDTH, 64),
    "MLP.width": (WIDTH, 64),
    "ClampedSwiGLU.limit": (0.5,),
    "ClampedSwiGLU.slope": (1.7,),
    "MoE.experts": (4, 3),
    "MoE.width": (32, 64),
    "Router.top_k": (2, 4, 1),
    "Router.sum_eps": (1e-3,),
    "SharedExpert.width": (32, 64),
    "ModelSpec.vocab_size": (VOCAB,),
    "ModelSpec.hidden": (HIDDEN,),
    "ModelSpec.context_length": (CONTEXT,),
    "ModelSpec.positions": (CONTEXT,),
    "LayerSpec.multipliers": ((("attn.k", 0.5),), (("ffn.down", 2.0), ("attn.q", 1.5)), (("ssm.z", 0.5),)),
}
"""Values of sizes, and of numbers and texts that have to fit something; the first is the plain one."""
P = TypeVar("P")
NUMBERS = (0.5, 2.0)
"""Values of other numbers: scales, caps, limits."""


@cache
def entries(kind: Any) -> tuple[tuple[Field[Any], Meaning, Any], ...]:
    """The fields of a class of the spec, with their meaning and their type."""
    hints = get_type_hints(kind)
    return tuple((entry, meaning_of(entry), hints[entry.name]) for entry in fields(kind))


def sized(kind: type, name: str) -> Sequence[Any]:
    """The values of a size."""
    key = f"{kind.__name__}.{name}"
    if key not in SIZES:
        raise KeyError(f"tests/specs/draw.py has no values for the size {key}; add some to SIZES")
    return SIZES[key]


def plain(kind: type[P]) -> P:
    """The class with every field at its default, the first of its sizes, or the first of its types."""
    values: dict[str, Any] = {}
    owner: Any = kind
    for entry, role, hint in entries(owner):
        if entry.default is MISSING and entry.name != "layers":
            own = role.kind == "size" or f"{kind.__name__}.{entry.name}" in SIZES
            values[entry.name] = sized(kind, entry.name)[0] if own else next(iter(values_of(kind, entry, hint, None)))
    if kind is ModelSpec:
        values["layers"] = (plain(LayerSpec),) * 2
    return kind(**values)


def values_of(kind: type, entry: Field[Any], hint: Any, owner: Any) -> Iterator[Any]:
    """The values that a field can have, by its type."""
    if entry.name == "layers":
        return
    if f"{kind.__name__}.{entry.name}" in SIZES:
        yield from SIZES[f"{kind.__name__}.{entry.name}"]
        yield from ([entry.default] if entry.default is not MISSING else [])
        return
    if meaning_of(entry).kind == "size":
        yield from sized(kind, entry.name)
        return
    for each in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if each is NoneType:
            yield None
        elif each is bool:
            yield from (False, True)
        elif each is float:
            yield from NUMBERS
            yield from ([entry.default] if entry.default is not MISSING else [])
        elif get_origin(each) is Literal:
            yield from get_args(each)
        elif get_origin(each) is frozenset:
            yield from _sets(entry, owner)
        elif is_dataclass(each) and isinstance(each, type):
            yield plain(each)
        else:
            raise TypeError(f"{kind.__name__}.{entry.name} is a {each}, which tests/specs/draw.py cannot draw")


def _sets(entry: Field[Any], owner: Any) -> Iterator[frozenset[str]]:
    """The sets of names of projections with a bias that the owner accepts: one name more, or one less, and all."""
    if owner is None:
        yield frozenset()
        return
    now: frozenset[str] = getattr(owner, entry.name)
    roles = owner.roles(HIDDEN)
    names = {role.rpartition(".")[2].removesuffix("_bias") for role in roles} | {"in"}
    found = [name for name in sorted(names) if name in now or _accepts(owner, entry.name, now | {name}, len(roles))]
    yield from (now ^ {name} for name in found)
    yield frozenset(found)


def _accepts(owner: Any, name: str, items: frozenset[str], before: int) -> bool:
    try:
        return len(replace(owner, **{name: items}).roles(HIDDEN)) > before
    except KeyError:
        return False


def parts(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A part of the spec and all within it, but for layers, with the names of the fields that lead there."""
    yield path, part
    for entry in fields(part):
        value = getattr(part, entry.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from parts(value, (*path, entry.name))


def at(part: Any, path: Sequence[str]) -> Any:
    """What is at the end of the path, None where it leads nowhere."""
    for name in path:
        part = getattr(part, name, None)
    return part


def changed(part: P, path: Sequence[str], value: Any) -> P:
    """The part with the field at the end of the path set to the value."""
    inner = value if len(path) == 1 else changed(getattr(part, path[0]), path[1:], value)
    made: P = replace(part, **{path[0]: inner})  # type: ignore[type-var]
    return made


def moves(part: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Everything that can be changed in a part or within it: (path to a field, another value)."""
    found = []
    for path, owner in parts(part):
        kind: type = type(owner)
        for entry, _, hint in entries(kind):
            now = getattr(owner, entry.name)
            others = [value for value in values_of(kind, entry, hint, owner) if value != now]
            found += [((*path, entry.name), value) for value in others]
    return found


def step(spec: ModelSpec, rng: random.Random) -> ModelSpec:
    """The spec with one thing changed: of the model, of all layers, or of one layer.

    Fields are equally likely, and so are their values. What changes in one norm of the stream mostly changes in all of them,
    as models have norms of one kind.
    """
    outside = rng.random() < 0.2
    owner = spec if outside else rng.choice(spec.layers)
    found = moves(owner)
    path = rng.choice(sorted({path for path, _ in found}))
    value = rng.choice([value for where, value in found if where == path])
    if len(path) == 2 and path[0].endswith("_norm") and rng.random() < 0.7:
        return _all_norms(spec, path[1], value)
    if outside:
        return changed(spec, path, value)
    one = rng.randrange(len(spec.layers)) if rng.random() < 0.15 else None
    kind = type(at(owner, path[:-1]))

    def moved(n: int, layer: LayerSpec) -> LayerSpec:
        """The layer with the change, if it has a part of the same class there."""
        here = one in (None, n) and type(at(layer, path[:-1])) is kind
        return changed(layer, path, value) if here else layer

    return replace(spec, layers=tuple(moved(n, layer) for n, layer in enumerate(spec.layers)))


def _all_norms(spec: ModelSpec, name: str, value: Any) -> ModelSpec:
    """The spec with the field `name` of all norms of the stream set to the value."""

    def changed_norms(part: Any) -> Any:
        found = [e.name for e in fields(part) if e.name.endswith("_norm") and isinstance(getattr(part, e.name), Norm)]
        return replace(part, **{field: replace(getattr(part, field), **{name: value}) for field in found})

    outside: ModelSpec = changed_norms(spec)
    return replace(outside, layers=tuple(map(changed_norms, spec.layers)))


def repaired(spec: ModelSpec) -> ModelSpec:
    """The spec with what a change of one field asks of others: no norm of a feed-forward that is gone, a norm that is ordered."""

    def change(layer: LayerSpec) -> LayerSpec:
        """The layer with such fields set."""
        mixer = layer.mixer
        if layer.feed_forward is None:
            layer = replace(layer, ffn_norm=None, ffn_post_norm=None, parallel=False)
        if not isinstance(mixer, Attention):
            return replace(layer, beside=None)
        late = mixer.norm_per_head or mixer.norm_whole or mixer.norm_after_rope or mixer.norm_gain
        if late and not mixer.qk_norm:
            return replace(layer, mixer=replace(mixer, qk_norm=Norm(EPS)))
        return layer

    return replace(spec, layers=tuple(map(change, spec.layers)))


def draw(seed: int, start: ModelSpec, accepts: Callable[[ModelSpec], bool]) -> ModelSpec:
    """A spec of the seed that has a meaning: `start` with up to seven changes.

    A change after which the spec is no longer accepted is mostly taken back, so that there are many features together that a
    target has.
    """
    rng = random.Random(seed)
    spec = start
    for _ in range(rng.choice((0, 1, 2, 2, 3, 3, 4, 5, 7))):
        made = repaired(step(spec, rng))
        if not nonsense(made) and (rng.random() < 0.08 or accepts(made)):
            spec = made
    return spec


def nonsense(spec: ModelSpec) -> str:
    """Why the spec describes no model, if it does not: a field that needs another, or sizes that do not fit."""
    for layer in spec.layers:
        if why := _nonsense_layer(layer):
            return why
        if any(role not in layer.roles(spec.hidden) for role, _ in layer.multipliers):
            return "a multiplier of a matrix that there is not"
    norms = [norm for _, norm in parts(spec) if isinstance(norm, Norm)]
    norms += [norm for layer in spec.layers for _, norm in parts(layer) if isinstance(norm, Norm)]
    if any(norm.offset and not norm.weighted for norm in norms):
        return "an offset of weights that there are not"
    return ""


def _nonsense_layer(layer: LayerSpec) -> str:
    ffn, mixer = layer.feed_forward, layer.mixer
    if ffn is None and (layer.parallel or layer.ffn_norm or layer.ffn_post_norm):
        return "a norm of a feed-forward that there is not"
    if layer.beside and not isinstance(mixer, Attention):
        return "a state space beside another mixer than attention"
    if isinstance(ffn, MoE):
        if ffn.router.top_k > ffn.experts:
            return "more experts selected than there are"
        if ffn.router.selection_bias and ffn.router.score_bias:
            return "two biases of one name"
        if ffn.router.sum_eps and not ffn.router.normalised:
            return "a sum that nothing is divided by"
    space = layer.state_space
    if isinstance(space, Mamba2) and space.norm_first and not space.norm:
        return "the order of a norm that there is not"
    return _nonsense_attention(mixer) if isinstance(mixer, Attention) else ""


def _nonsense_attention(mixer: Attention) -> str:
    if mixer.heads % mixer.kv_heads:
        return "heads that do not divide into groups"
    late = mixer.norm_per_head or mixer.norm_whole or mixer.norm_after_rope or mixer.norm_gain
    if late and not mixer.qk_norm:
        return "properties of a q/k norm that there is not"
    if mixer.norm_whole and (mixer.norm_per_head or mixer.norm_after_rope or mixer.norm_gain):
        return "a norm over all heads and of each"
    if mixer.norm_after_rope and mixer.norm_gain:
        return "a gain between norm and rope"
    rope = mixer.rope
    if rope is None:
        return "the order of norm and rope without rope" if mixer.norm_after_rope else ""
    if rope.dims > mixer.head_dim:
        return "more dimensions that turn than there are"
    for name in ("factors", "short", "long"):
        values = getattr(rope.scaling, name, None)
        if isinstance(values, tuple) and len(values) != rope.dims // 2:
            return "another number of factors than of pairs"
    return ""


def model(spec: ModelSpec, seed: int) -> Model:
    """A model of the spec with random weights, all far from values that change nothing."""
    rng = np.random.default_rng(seed)

    def fill(role: str, shape: tuple[int, ...]) -> InMemory:
        noise = rng.standard_normal(shape)
        if role in ("embedding", "positions"):
            values = noise
        elif role.endswith("bias"):
            values = noise * 0.3
        elif len(shape) == 1 or role.endswith(("_norm", "_gain")):
            values = noise * 0.3 + 0.8
        else:
            values = noise * (2.0 if role == "moe.router" else 1.0) / shape[-1] ** 0.5
        return InMemory(values.astype(np.float32), (role,))

    made = filled(spec, fill)
    return made.with_layers(replace(layer, tensors=_stable(dict(layer.tensors))) for layer in made.layers)


def _stable(tensors: LayerTensors) -> LayerTensors:
    """The tensors with decays that forget: a rate is negative."""
    for role in ("delta.decay", "ssm.decay"):
        if role in tensors:
            tensors[role] = InMemory(-np.abs(tensors[role].array()), (role,))
    return tensors
