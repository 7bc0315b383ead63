"""The candidates of a search: which recipes are tried, in an order that depends on nothing but the space and the model.

Recipes with the same stack of layers are one candidate, which is named by the first recipe that gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Literal

from gguf_tools.errors import InputError, UnsupportedError
from surgery.algebra import Blend, Edited, Halves, Layer, Original, Stack, identity
from surgery.ops import Op, all_ops
from surgery.ops.blends import Interpolate, Merge, Scale
from surgery.ops.copies import Attenuate, Bridge, Duplicate, Repeat, Triple
from surgery.ops.experts import DropExpertsOp
from surgery.ops.order import Cycle, Delete, Move, Reverse, Swap
from surgery.recipe import Recipe

Strategy = Literal["single", "blocks", "compose", "sample"]
STRATEGIES: tuple[Strategy, ...] = ("single", "blocks", "compose", "sample")
Refused = Callable[[Recipe], str]
"""A recipe → why `tinyq surgery` refuses it, or an empty text."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be tried on a model of `count` layers.

    `first` to `last`, both included, are the layers that ops may name. `kinds` are the names of the ops that may occur. `reach`
    is the largest distance between layers that are interpolated, merged or swapped. `alphas` are the weights of interpolations,
    `factors` those of scaled layers. `sizes` are the smallest and the largest number of layers of a block, `stride` the distance
    between the first layers of two blocks, `times` how often a repeated block runs. `experts` is the number of routed experts of
    a layer, 0 for none.
    """

    count: int
    first: int
    last: int
    kinds: frozenset[str]
    reach: int = 2
    alphas: tuple[float, ...] = (0.5,)
    factors: tuple[float, ...] = (0.9, 1.1)
    sizes: tuple[int, int] = (2, 512)
    stride: int = 1
    times: int = 2
    experts: int = 0

    @property
    def layers(self) -> range:
        """The layers that ops may name."""
        return range(self.first, self.last + 1)

    def as_dict(self) -> dict[str, object]:
        """The space for JSON, with its kinds in alphabetical order."""
        return {
            "layers": [self.first, self.last],
            "ops": sorted(self.kinds),
            "reach": self.reach,
            "alphas": list(self.alphas),
            "factors": list(self.factors),
            "sizes": list(self.sizes),
            "stride": self.stride,
            "times": self.times,
        }


@dataclass(frozen=True)
class Candidate:
    """A recipe and the stack of layers that it gives."""

    recipe: Recipe
    stack: Stack

    @property
    def key(self) -> str:
        """The same for all recipes with the same stack, 16 hexadecimal digits."""
        return stack_key(self.stack)


def stack_key(stack: Stack) -> str:
    """A digest of a stack of layers (SHA-256 of its expression, shortened to 16 hexadecimal digits)."""
    return hashlib.sha256(repr(stack).encode()).hexdigest()[:16]


def kinds_of(allow: Sequence[str], forbid: Sequence[str]) -> frozenset[str]:
    """The names of the ops that may occur: those allowed (all for none) without those forbidden.

    InputError for a name that no op has, and where none is left.
    """
    for name in (*allow, *forbid):
        if name not in all_ops():
            raise InputError(f"op {name!r} is not known; the ops are {', '.join(all_ops())}")
    kinds = frozenset(allow or all_ops()) - set(forbid)
    if not kinds:
        raise InputError("no op is left to try: --forbid names all that --allow names; forbid fewer")
    return kinds


def single_ops(space: Space) -> Iterator[Op]:
    """Every deletion, duplication, swap of neighbours, interpolation of near neighbours (inserted, or in the place between), and
    every expert left out of all layers."""
    layers = space.layers
    yield from (Delete(((n, n),)) for n in layers)
    yield from (Duplicate(n) for n in layers)
    yield from (Swap(((n, n + 1),)) for n in layers[:-1])
    for distance in range(1, space.reach + 1):
        for n in layers[: len(layers) - distance]:
            for alpha in space.alphas:
                yield Interpolate(first=n, second=n + distance, alpha=alpha)
                if distance == 2:
                    yield Interpolate(first=n, second=n + 2, alpha=alpha, replace=n + 1)
    # llama.cpp has one number of experts for all layers.
    yield from (DropExpertsOp((0, space.count - 1), (expert,)) for expert in range(space.experts))


def block_ops(space: Space) -> Iterator[Op]:
    """Every repetition and every deletion of a block of layers, by size, then by place."""
    smallest, largest = space.sizes
    for size in range(smallest, min(largest, len(space.layers)) + 1):
        for first in range(space.first, space.last + 2 - size, space.stride):
            yield Repeat((first, first + size - 1), space.times)
            if size < space.count:
                yield Delete(((first, first + size - 1),))


def later_ops(space: Space, count: int) -> Iterator[Op]:
    """What a recipe whose result has `count` layers is extended by: all ops, with places that are near each other.

    Layers before and behind those that may be named keep their distance from the ends.
    """
    last = count - 1 - (space.count - 1 - space.last)
    here = replace(space, count=count, last=last)
    layers = here.layers
    yield from single_ops(here)
    yield from (Triple(n) for n in layers)
    for size in range(2, min(4, len(layers)) + 1):
        blocks = [(n, n + size - 1) for n in layers[: len(layers) - size + 1]]
        yield from (Repeat(block, space.times) for block in blocks)
        # A block of two in the opposite order, or rotated, is a swap of neighbours.
        yield from (Reverse(block) for block in blocks if size > 2)
        yield from (Cycle(block, by) for block in blocks if size > 2 for by in (1, -1))
    yield from (Scale((n, n), factor) for n in layers for factor in space.factors)
    for distance in range(1, space.reach + 1):
        yield from (Merge(n, n + distance) for n in layers[: len(layers) - distance])
    yield from (Swap(((n, n + far),)) for far in range(2, space.reach + 1) for n in layers[: len(layers) - far])
    pairs = [(n, n + 1) for n in layers[:-1]]
    yield from (Swap((one, other)) for one, other in combinations(pairs, 2) if one[1] < other[0])
    yield from (Bridge(source, after) for source in layers for after in layers if source != after)
    yield Attenuate(None)
    yield from (Move(n, to) for n in layers for to in layers if abs(n - to) > 1)


def candidates(
    space: Space, ops: Iterable[Op], refused: Refused, known: Iterable[str] = (), start: Recipe | None = None
) -> Iterator[Candidate]:
    """The candidates that ops give after the recipe `start`, without those refused, and each stack once.

    `known` are the keys of stacks that are candidates already; the unchanged model never is one.
    """
    before = start or Recipe()
    seen = {stack_key(identity(space.count)), *known}
    for op in ops:
        if op.name not in space.kinds:
            continue
        recipe = before.then(Recipe((op,)))
        try:
            found = Candidate(recipe, recipe.apply(space.count))
        except InputError:
            continue
        if found.key not in seen:
            seen.add(found.key)
            if not refused(recipe):
                yield found


def extended(
    space: Space,
    beam: Sequence[Candidate],
    known: Mapping[str, object],
    refused: Refused,
    rank: Callable[[Candidate], float],
    most: int,
) -> list[Candidate]:
    """Recipes of the beam with one op more, at most `most`, and of these as many from each of the beam as it has.

    Of one beam's extensions, each kind of op gives the ones that `rank` (what is expected to be lost) puts first, in turn, so
    that no kind crowds out the others. Stacks in `known` are left out.
    """
    seen = dict(known)
    lines: list[list[Candidate]] = []
    for start in beam:
        kinds: dict[str, list[Candidate]] = {}
        ops = later_ops(space, len(start.stack))
        # Whether the surgery is possible is asked last, of the few that are taken.
        for found in candidates(space, ops, lambda _: "", seen, start.recipe):
            kinds.setdefault(found.recipe.ops[-1].name, []).append(found)
        lines.append(_turns([sorted(group, key=rank) for _, group in sorted(kinds.items())]))
    taken: list[Candidate] = []
    for found in _turns(lines):
        if len(taken) == most:
            break
        if found.key not in seen and not refused(found.recipe):
            seen[found.key] = None
            taken.append(found)
    return taken


def _turns(lines: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The first of each line, then the second of each, and so on."""
    longest = max(map(len, lines), default=0)
    return list(chain.from_iterable((line[n] for line in lines if n < len(line)) for n in range(longest)))


def expected_loss(stack: Stack, update: Sequence[float]) -> float:
    """What a stack is expected to lose, from the relative update norm of each layer of the base (`profile`).

    Layers that are missing, that run more often than once, or out of order, count with their update norm; a blend counts for its
    parts by their weights. The rank correlation of this with the true damage is 0.7 to 0.96 for single deletions and swaps, and
    less for copies (docs/search.md); it says what hurts, not what helps.
    """
    shares = [0.0] * len(update)
    main: list[int] = []
    for layer in stack:
        weights = _weights(layer)
        for index, weight in weights.items():
            shares[index] += weight
        main.append(max(weights, key=lambda index: (weights[index], -index)))
    kept = set(_heaviest_rising(main, update))
    displaced = {index for place, index in enumerate(main) if place not in kept}
    odd = sum(norm * abs(share - 1.0) for norm, share in zip(update, shares, strict=True))
    return odd + sum(update[index] for index in displaced if abs(shares[index] - 1.0) < 1e-9)


def _weights(layer: Layer) -> dict[int, float]:
    """The base's layers in a layer's expression, with the share that each has in it."""
    if isinstance(layer, Original):
        return {layer.index: 1.0}
    if isinstance(layer, Edited):
        return _weights(layer.layer)
    found: dict[int, float] = {}
    if isinstance(layer, Blend):
        parts = [(part, weight) for part, weight in layer.parts]
    elif isinstance(layer, Halves):
        parts = [(layer.attention, 0.5), (layer.ffn, 0.5)]
    else:
        parts = [(layer.layer, (layer.attention + layer.ffn) / 2)]
    for part, weight in parts:
        for index, share in _weights(part).items():
            found[index] = found.get(index, 0.0) + weight * share
    return found


def _heaviest_rising(main: Sequence[int], weight: Sequence[float]) -> list[int]:
    """The places of a rising subsequence of layers with the largest sum of weights."""
    best: list[tuple[float, int]] = []
    for place, index in enumerate(main):
        before = [(best[n][0], n) for n in range(place) if main[n] < index]
        total, link = max(before, default=(0.0, -1))
        best.append((total + weight[index], link))
    place = max(range(len(best)), key=lambda n: best[n][0])
    kept = []
    while place >= 0:
        kept.append(place)
        place = best[place][1]
    return kept[::-1]


def surgery_refuses(plan: Callable[[Recipe], object]) -> Refused:
    """`Refused` from a function that plans the surgery and raises InputError or UnsupportedError where it is not possible."""

    def refused(recipe: Recipe) -> str:
        try:
            plan(recipe)
        except (InputError, UnsupportedError) as error:
            return str(error)
        return ""

    return refused
