"""The algebra of layer surgery: frozen expressions for the layers of the new model.

A stack is a tuple of layers, each an expression over the layers of the original model, and of other models of the same shapes
(donors): one of them, a blend, a scaled layer, halves of two layers, or a layer with other experts. An op maps a stack to a
stack, so ops compose in any order, and their indices refer to the stack before the op. This module is independent of tensors:
a `Space` (for a Model, a checkpoint or a GGUF file) implements the expressions, half a layer at a time, and `evaluate`
evaluates them in it.

Use the functions in lower case (`blend`, `scaled`, `halves`, `edited`) as constructors: they normalise expressions, so that
equivalent ones are equal: swapping twice gives the original stack, and a blend at 0 or 1 is the layer itself (and is later
copied byte by byte).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Generic, Literal, TypeVar, cast

from gguf_tools.errors import InputError

Half = Literal["attention", "ffn"]
HALVES: tuple[Half, ...] = ("attention", "ffn")
Method = Literal["linear", "slerp", "slerp-tensor"]
METHODS: tuple[Method, ...] = ("linear", "slerp", "slerp-tensor")


@dataclass(frozen=True)
class Original:
    """A layer of the original model, or of the donor named `source`; `index` is its place there."""

    index: int
    source: str = ""


@dataclass(frozen=True)
class Blend:
    """A weighted mean of layers of the same kind; weights sum to 1. `slerp` has two parts, with weights 1 - t and t."""

    parts: tuple[tuple[Layer, float], ...]
    method: Method = "linear"


@dataclass(frozen=True)
class Scaled:
    """A layer whose halves' contributions to the residual stream are multiplied by `attention` and `ffn`.

    Queries and keys are each multiplied by `query_key`, so that attention scores are multiplied by its square.
    """

    layer: Layer
    attention: float
    ffn: float
    query_key: float = 1.0


@dataclass(frozen=True)
class Halves:
    """The attention half (mixer and its norm) of one layer and the feed-forward half of another."""

    attention: Layer
    ffn: Layer


@dataclass(frozen=True)
class DropExperts:
    """Removes these experts and their rows of the router."""

    experts: tuple[int, ...]

    def order(self, count: int, label: str) -> tuple[int, ...]:
        """The indices of the remaining experts, of `count`; InputError if an index is out of range."""
        for expert in self.experts:
            _check_expert(expert, count, label)
        return tuple(expert for expert in range(count) if expert not in self.experts)

    def __str__(self) -> str:
        return f"without {'expert' if len(self.experts) == 1 else 'experts'} {', '.join(map(str, self.experts))}"


@dataclass(frozen=True)
class SwapExperts:
    """Exchanges two experts, and their rows of the router."""

    first: int
    second: int

    def order(self, count: int, label: str) -> tuple[int, ...]:
        """The indices of all `count` experts in the new order; InputError if an index is out of range."""
        for expert in (self.first, self.second):
            _check_expert(expert, count, label)
        return tuple({self.first: self.second, self.second: self.first}.get(e, e) for e in range(count))

    def __str__(self) -> str:
        return f"with experts {self.first} and {self.second} exchanged"


Edit = DropExperts | SwapExperts


@dataclass(frozen=True)
class Edited:
    """A layer with a change to its experts."""

    layer: Layer
    edit: Edit


Layer = Original | Blend | Scaled | Halves | Edited
Stack = tuple[Layer, ...]


def identity(count: int) -> Stack:
    """The stack of a model with `count` layers before any op."""
    return tuple(Original(n) for n in range(count))


def blend(parts: Sequence[tuple[Layer, float]], method: Method = "linear") -> Layer:
    """A weighted mean of layers. Nested linear means are merged, and the mean of one layer is that layer."""
    flat: dict[Layer, float] = {}
    for layer, weight in parts:
        inner = layer.parts if method == "linear" and isinstance(layer, Blend) and layer.method == method else ()
        for part, share in inner or ((layer, 1.0),):
            if weight * share:
                flat[part] = flat.get(part, 0.0) + weight * share
    if not isclose(sum(flat.values()), 1.0, rel_tol=1e-9):
        raise ValueError(f"the weights of a blend sum to {sum(flat.values())}; expected 1")
    if len(flat) == 1:
        return next(iter(flat))
    return Blend(tuple(flat.items()), method)


def scaled(layer: Layer, factor: float, half: Half | None = None, query_key: float = 1.0) -> Layer:
    """A layer with the contributions of both halves, or of `half`, multiplied by `factor`, and q and k by `query_key` each."""
    attention, ffn = (factor if half in (None, which) else 1.0 for which in HALVES)
    if isinstance(layer, Scaled):
        attention, ffn = layer.attention * attention, layer.ffn * ffn
        query_key *= layer.query_key
        layer = layer.layer
    return layer if attention == ffn == query_key == 1.0 else Scaled(layer, attention, ffn, query_key)


def halves(attention: Layer, ffn: Layer) -> Layer:
    """The attention of one layer and the feed-forward of another."""
    attention = attention.attention if isinstance(attention, Halves) else attention
    ffn = ffn.ffn if isinstance(ffn, Halves) else ffn
    return attention if attention == ffn else Halves(attention, ffn)


def with_half(layer: Layer, other: Layer, half: Half | None) -> Layer:
    """`layer` with `half` (or both halves, for None) taken from `other`."""
    if half is None:
        return other
    return halves(other, layer) if half == "attention" else halves(layer, other)


def edited(layer: Layer, edit: Edit) -> Layer:
    """A layer with its experts changed; swapping the same two experts twice gives the original layer."""
    if isinstance(layer, Edited) and isinstance(edit, SwapExperts) and layer.edit == edit:
        return layer.layer
    return Edited(layer, edit)


def describe(layer: Layer) -> str:
    """A short description of the layer, such as `20`, `B:3` or `0.5·20 + 0.5·22`."""
    if isinstance(layer, Original):
        return f"{layer.source}:{layer.index}" if layer.source else str(layer.index)
    if isinstance(layer, Blend) and layer.method != "linear":
        (a, _), (b, t) = layer.parts
        return f"{layer.method} of {describe(a)} and {describe(b)} at {t:g}"
    if isinstance(layer, Blend):
        return " + ".join(f"{weight:g}·{_grouped(part)}" for part, weight in layer.parts)
    if isinstance(layer, Scaled):
        same = layer.attention == layer.ffn
        if same and layer.query_key == 1.0:
            return f"{_grouped(layer.layer)} × {layer.attention:g}"
        which = [f"{half} × {getattr(layer, half):g}" for half in HALVES if getattr(layer, half) != 1.0]
        which = [f"outputs × {layer.attention:g}"] if same and layer.attention != 1.0 else which
        which += [] if layer.query_key == 1.0 else [f"q and k × {layer.query_key:g}"]
        return f"{_grouped(layer.layer)} with {', '.join(which)}"
    if isinstance(layer, Halves):
        return f"attention of {_grouped(layer.attention)}, ffn of {_grouped(layer.ffn)}"
    return f"{_grouped(layer.layer)} {layer.edit}"


def _grouped(layer: Layer) -> str:
    return describe(layer) if isinstance(layer, Original) else f"({describe(layer)})"


def origins(layer: Layer, half: Half | None = None) -> tuple[Original, ...]:
    """The original layers, each with its source, in a layer's expression, or in that of one half."""
    if isinstance(layer, Original):
        return (layer,)
    if isinstance(layer, Blend):
        found = [origin for part, _ in layer.parts for origin in origins(part, half)]
    elif isinstance(layer, Halves):
        found = [origin for which in HALVES if half in (None, which) for origin in origins(getattr(layer, which), half)]
    else:
        found = list(origins(layer.layer, half))
    return tuple(dict.fromkeys(found))


def parted(layer: Layer) -> tuple[Original, ...]:
    """The original layers whose halves are separated, or scaled differently, in a layer."""
    if isinstance(layer, Original):
        return ()
    if isinstance(layer, Halves) or (isinstance(layer, Scaled) and _uneven(layer)):
        return origins(layer)
    inner = [part for part, _ in layer.parts] if isinstance(layer, Blend) else [layer.layer]
    return tuple(dict.fromkeys(origin for part in inner for origin in parted(part)))


def _uneven(layer: Scaled) -> bool:
    return layer.attention != layer.ffn or layer.query_key != 1.0


def is_permutation(stack: Stack, count: int) -> bool:
    """Whether the stack contains each of the `count` original layers exactly once, unchanged."""
    return len(stack) == count and set(stack) == set(identity(count))


H = TypeVar("H")


class Space(ABC, Generic[H]):
    """A representation of half-layers (`H`), with the operations of blending, scaling and editing them."""

    @abstractmethod
    def half(self, origin: Original, half: Half) -> H:
        """Half of an original layer, or of a donor's."""

    @abstractmethod
    def mismatch(self, a: H, b: H) -> tuple[str, str] | None:
        """Descriptions of both halves if their kinds differ, so that they cannot be blended; else None."""

    @abstractmethod
    def blend(self, parts: Sequence[tuple[H, float]], method: Method) -> H:
        """The weighted mean of halves of the same kind."""

    @abstractmethod
    def scaled(self, part: H, factor: float) -> H:
        """The half with its contribution to the residual stream multiplied by `factor`."""

    @abstractmethod
    def attenuated(self, part: H, factor: float) -> H:
        """The attention half with the queries and keys in its attention scores each multiplied by `factor`."""

    @abstractmethod
    def expert_count(self, part: H) -> int:
        """Number of routed experts, 0 for none."""

    @abstractmethod
    def experts(self, part: H, order: tuple[int, ...]) -> H:
        """The half with the experts `order`, in that order, and the rows of the router likewise."""


def evaluate(layer: Layer, half: Half, space: Space[H]) -> H:
    """Evaluate one half of a layer's expression in a space.

    Raises InputError, naming both kinds, for a blend of different kinds, and, with the valid range, for an unknown expert.
    """
    if isinstance(layer, Original):
        return space.half(layer, half)
    if isinstance(layer, Halves):
        return evaluate(cast(Layer, getattr(layer, half)), half, space)
    if isinstance(layer, Blend):
        parts = [(evaluate(part, half, space), weight) for part, weight in layer.parts]
        first, label = parts[0][0], describe(layer.parts[0][0])
        for (part, _), (other, _) in zip(parts[1:], layer.parts[1:], strict=True):
            kinds = space.mismatch(first, part)
            if kinds:
                raise InputError(
                    f"layers {label} and {describe(other)} cannot be blended: {label} has {kinds[0]}, "
                    f"{describe(other)} has {kinds[1]}; blend layers of the same type"
                )
        return space.blend(parts, layer.method)
    part = evaluate(layer.layer, half, space)
    if isinstance(layer, Scaled):
        factor = layer.attention if half == "attention" else layer.ffn
        part = part if factor == 1.0 else space.scaled(part, factor)
        return part if half == "ffn" or layer.query_key == 1.0 else space.attenuated(part, layer.query_key)
    if half == "attention":
        return part
    count = space.expert_count(part)
    if not count:
        raise InputError(f"layer {describe(layer.layer)} has no experts; give a layer with experts")
    order = layer.edit.order(count, describe(layer.layer))
    if not order:
        raise InputError(f"layer {describe(layer.layer)} would have no experts left of {count}; keep at least one")
    return space.experts(part, order)


def _check_expert(expert: int, count: int, label: str) -> None:
    if not 0 <= expert < count:
        raise InputError(f"expert {expert} does not exist in layer {label}; its experts are 0 to {count - 1}")
