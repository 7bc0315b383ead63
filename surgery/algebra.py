"""The algebra of layer surgery: what each layer of the new model is made of, as frozen descriptions.

A stack is a tuple of layers, each an expression over the layers of the model that the surgery began with: one of them, a
blend, a scaled one, two halves, one with its experts changed. Ops map a stack to a stack, so they compose in any order
and their indices are those of the stack as it stands. Nothing here knows of tensors: a `Space` (a Model, a checkpoint, a
GGUF file) says what the expressions mean, half a layer at a time, and `evaluate` walks them.

The functions in lower case (`blend`, `scaled`, `halves`, `edited`) are the constructors to use: they bring expressions
into one form, so that what is the same is equal: a swap done twice leaves the stack that was there, and a blend at 0 or
1 is the layer itself (and is copied byte by byte later on).
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
Method = Literal["linear", "slerp"]
METHODS: tuple[Method, ...] = ("linear", "slerp")


@dataclass(frozen=True)
class Original:
    """A layer of the model that the surgery began with."""

    index: int


@dataclass(frozen=True)
class Blend:
    """A weighted mean of layers of one kind; weights sum to 1. `slerp` has two parts, of weights 1 - t and t."""

    parts: tuple[tuple[Layer, float], ...]
    method: Method = "linear"


@dataclass(frozen=True)
class Scaled:
    """A layer that adds `attention` times, and `ffn` times, what its halves would add to the residual stream."""

    layer: Layer
    attention: float
    ffn: float


@dataclass(frozen=True)
class Halves:
    """The attention (the mixer, with its norm) of one layer and the feed-forward of another."""

    attention: Layer
    ffn: Layer


@dataclass(frozen=True)
class DropExperts:
    """Leaves out these experts; their rows of the router go with them."""

    experts: tuple[int, ...]

    def order(self, count: int, label: str) -> tuple[int, ...]:
        """The experts that stay, of `count`."""
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
        """All experts, of `count`, in the new order."""
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
    """The stack of a model of `count` layers before any op."""
    return tuple(Original(n) for n in range(count))


def blend(parts: Sequence[tuple[Layer, float]], method: Method = "linear") -> Layer:
    """A weighted mean. Linear means of linear means become one, and a mean of one layer is that layer."""
    flat: dict[Layer, float] = {}
    for layer, weight in parts:
        inner = layer.parts if method == "linear" and isinstance(layer, Blend) and layer.method == method else ()
        for part, share in inner or ((layer, 1.0),):
            if weight * share:
                flat[part] = flat.get(part, 0.0) + weight * share
    if not isclose(sum(flat.values()), 1.0, rel_tol=1e-9):
        raise ValueError(f"the weights of a blend sum to {sum(flat.values())}, not to 1")
    if len(flat) == 1:
        return next(iter(flat))
    return Blend(tuple(flat.items()), method)


def scaled(layer: Layer, factor: float, half: Half | None = None) -> Layer:
    """A layer whose halves, or one of them, add `factor` times as much."""
    attention, ffn = (factor if half in (None, which) else 1.0 for which in HALVES)
    if isinstance(layer, Scaled):
        attention, ffn = layer.attention * attention, layer.ffn * ffn
        layer = layer.layer
    return layer if attention == ffn == 1.0 else Scaled(layer, attention, ffn)


def halves(attention: Layer, ffn: Layer) -> Layer:
    """The attention of one layer and the feed-forward of another."""
    attention = attention.attention if isinstance(attention, Halves) else attention
    ffn = ffn.ffn if isinstance(ffn, Halves) else ffn
    return attention if attention == ffn else Halves(attention, ffn)


def with_half(layer: Layer, other: Layer, half: Half | None) -> Layer:
    """`layer` with that half (both for None) taken from `other`."""
    if half is None:
        return other
    return halves(other, layer) if half == "attention" else halves(layer, other)


def edited(layer: Layer, edit: Edit) -> Layer:
    """A layer with its experts changed; exchanging the same two again undoes it."""
    if isinstance(layer, Edited) and isinstance(edit, SwapExperts) and layer.edit == edit:
        return layer.layer
    return Edited(layer, edit)


def describe(layer: Layer) -> str:
    """The layer in a few words, such as `20` or `0.5·20 + 0.5·22`."""
    if isinstance(layer, Original):
        return str(layer.index)
    if isinstance(layer, Blend) and layer.method == "slerp":
        (a, _), (b, t) = layer.parts
        return f"slerp of {describe(a)} and {describe(b)} at {t:g}"
    if isinstance(layer, Blend):
        return " + ".join(f"{weight:g}·{_grouped(part)}" for part, weight in layer.parts)
    if isinstance(layer, Scaled):
        if layer.attention == layer.ffn:
            return f"{_grouped(layer.layer)} × {layer.attention:g}"
        which = [f"{half} × {getattr(layer, half):g}" for half in HALVES if getattr(layer, half) != 1.0]
        return f"{_grouped(layer.layer)} with {', '.join(which)}"
    if isinstance(layer, Halves):
        return f"attention of {_grouped(layer.attention)}, ffn of {_grouped(layer.ffn)}"
    return f"{_grouped(layer.layer)} {layer.edit}"


def _grouped(layer: Layer) -> str:
    return describe(layer) if isinstance(layer, Original) else f"({describe(layer)})"


def origins(layer: Layer, half: Half | None = None) -> tuple[int, ...]:
    """The original layers that a layer, or that half of it, is made of."""
    if isinstance(layer, Original):
        return (layer.index,)
    if isinstance(layer, Blend):
        found = [index for part, _ in layer.parts for index in origins(part, half)]
    elif isinstance(layer, Halves):
        found = [index for which in HALVES if half in (None, which) for index in origins(getattr(layer, which), half)]
    else:
        found = list(origins(layer.layer, half))
    return tuple(dict.fromkeys(found))


def parted(layer: Layer) -> tuple[int, ...]:
    """The original layers whose halves part ways, or are scaled apart, in a layer."""
    if isinstance(layer, Original):
        return ()
    if isinstance(layer, Halves) or (isinstance(layer, Scaled) and layer.attention != layer.ffn):
        return origins(layer)
    inner = [part for part, _ in layer.parts] if isinstance(layer, Blend) else [layer.layer]
    return tuple(dict.fromkeys(index for part in inner for index in parted(part)))


def is_permutation(stack: Stack, count: int) -> bool:
    """Whether the stack has each of `count` original layers once, whole."""
    return len(stack) == count and set(stack) == set(identity(count))


H = TypeVar("H")


class Space(ABC, Generic[H]):
    """Where layers live: what half a layer is there (`H`), and what blending, scaling and editing it mean."""

    @abstractmethod
    def half(self, index: int, half: Half) -> H:
        """Half of an original layer."""

    @abstractmethod
    def mismatch(self, a: H, b: H) -> tuple[str, str] | None:
        """The two kinds in words, where they differ so that they cannot be blended."""

    @abstractmethod
    def blend(self, parts: Sequence[tuple[H, float]], method: Method) -> H:
        """The weighted mean of halves of one kind."""

    @abstractmethod
    def scaled(self, part: H, factor: float) -> H:
        """The half, adding `factor` times as much to the residual stream."""

    @abstractmethod
    def expert_count(self, part: H) -> int:
        """Number of routed experts, 0 for none."""

    @abstractmethod
    def experts(self, part: H, order: tuple[int, ...]) -> H:
        """The half with the experts `order`, in that order, and the router's rows likewise."""


def evaluate(layer: Layer, half: Half, space: Space[H]) -> H:
    """What that half of a layer is in a space.

    Raises InputError naming both kinds where a blend has two, and the valid range where an expert does not exist.
    """
    if isinstance(layer, Original):
        return space.half(layer.index, half)
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
                    f"{describe(other)} has {kinds[1]}; blend two of one kind"
                )
        return space.blend(parts, layer.method)
    part = evaluate(layer.layer, half, space)
    if isinstance(layer, Scaled):
        factor = layer.attention if half == "attention" else layer.ffn
        return part if factor == 1.0 else space.scaled(part, factor)
    if half == "attention":
        return part
    count = space.expert_count(part)
    if not count:
        raise InputError(f"layer {describe(layer.layer)} has no experts; name a layer with experts")
    order = layer.edit.order(count, describe(layer.layer))
    if not order:
        raise InputError(f"layer {describe(layer.layer)} would be left without experts; it has {count}")
    return space.experts(part, order)


def _check_expert(expert: int, count: int, label: str) -> None:
    if not 0 <= expert < count:
        raise InputError(f"expert {expert} does not exist in layer {label}; its experts are 0 to {count - 1}")
