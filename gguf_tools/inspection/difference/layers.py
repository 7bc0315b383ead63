"""Recognises layers by their weights: which of A's layers, or blend of two of them, stands at each place of B.

A few thousand weights of each tensor are looked at, at the same places in every layer. A layer of B is compared with every
layer of A, and with w·I + (1 - w)·J for all pairs of them with the best w in the sense of least squares; what is found is
then checked on all weights. Tensors are divided by their size over A's layers, so that each counts alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors.base import Tensor

LAYER = re.compile(r"blk\.(\d+)\.(.+)")
SAMPLE = 512
"""Weights looked at, at the start of a tensor and in its middle."""
ALIKE = 0.35
"""Relative distance up to which a layer is taken for another one, quantized; that of unrelated weights is about 1.4."""
CLEARER = 0.5
"""A blend must be closer than the closest layer by this factor, and a moved layer closer than the one at its place."""
ALMOST_ONE = 0.02
"""The least weight of either layer of a blend."""
MOST_PAIRED = 128
"""Blends are looked for among at most so many layers."""

Doubles = NDArray[np.float64]
LayerTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where a layer of B comes from: A's layer `first`, or `weight` · first + (1 - weight) · `second`.

    `distance` is relative to the size of the weights looked at.
    """

    first: int
    second: int | None = None
    weight: float = 1.0
    distance: float = 0.0

    def __str__(self) -> str:
        if self.second is None:
            return f"blk.{self.first}"
        return f"{_factor(self.weight)}·blk.{self.first} + {_factor(1.0 - self.weight)}·blk.{self.second}"


def _factor(weight: float) -> str:
    return f"{weight:.3f}".rstrip("0").rstrip(".")


def layers_of(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The tensors of each layer by their names without `blk.N.`."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := LAYER.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    return dict(sorted(found.items()))


def recognised(a: Mapping[int, LayerTensors], b: Mapping[int, LayerTensors]) -> dict[int, Source | None]:
    """For each layer of B where it comes from, itself where it stayed; None if it is none of A's layers and no blend."""
    found: dict[int, Source | None] = {}
    for n, layer in b.items():
        alike = {i: other for i, other in a.items() if _form(other) == _form(layer)}
        found[n] = _nearest(n, layer, alike) if alike else None
    return found


def _form(layer: LayerTensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in layer.items()}


def _nearest(n: int, layer: LayerTensors, others: Mapping[int, LayerTensors]) -> Source | None:
    """The source of B's layer n among layers of the same form."""
    names = sorted(layer)
    rows = np.stack([_sampled(other, names) for other in others.values()])
    mine = _sampled(layer, names)
    scales, at = np.ones(rows.shape[1]), 0
    for name in names:
        width = sampled_tensor(layer[name]).size
        part = rows[:, at : at + width]
        scales[at : at + width] = np.sqrt(np.square(part).mean()) or 1.0
        at += width
    if not (np.isfinite(rows).all() and np.isfinite(mine).all()):
        return None
    rows, mine = rows / scales, mine / scales
    centre = rows.mean(axis=0) if len(rows) > 1 else np.zeros_like(mine)
    rows, mine = rows - centre, mine - centre
    size = float(np.sqrt(np.square(rows).sum(axis=1).mean())) or 1.0
    distances = np.linalg.norm(rows - mine, axis=1) / size
    places = list(others)
    best = int(distances.argmin())
    if n in others and distances[places.index(n)] <= max(distances[best] / CLEARER, 1e-9):
        best = places.index(n)
    single = Source(places[best], distance=float(distances[best]))
    blend = _blend(rows, mine, places, size) if 1 < len(rows) <= MOST_PAIRED and single.distance > 1e-6 else None
    if blend and blend.distance < CLEARER * single.distance and blend.distance <= ALIKE:
        return blend
    return single if single.distance <= ALIKE else None


def _blend(rows: Doubles, mine: Doubles, places: Sequence[int], size: float) -> Source | None:
    """The closest w·I + (1 - w)·J with both weights at least `ALMOST_ONE`."""
    best: Source | None = None
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            along = rows[i] - rows[j]
            length = float(along @ along)
            weight = float((mine - rows[j]) @ along) / length if length else 1.0
            if not ALMOST_ONE <= weight <= 1.0 - ALMOST_ONE:
                continue
            distance = float(np.linalg.norm(mine - weight * rows[i] - (1.0 - weight) * rows[j])) / size
            if best is None or distance < best.distance:
                best = Source(places[i], places[j], weight, distance)
    return best


def sampled_tensor(tensor: Tensor) -> Doubles:
    """The weights of a tensor that are looked at."""
    half = tensor.size // 2
    parts = [tensor.flat(0, min(SAMPLE, tensor.size))]
    if half >= SAMPLE:
        parts.append(tensor.flat(half, min(half + SAMPLE, tensor.size)))
    return np.concatenate(parts).astype(np.float64)


def _sampled(layer: LayerTensors, names: Sequence[str]) -> Doubles:
    return np.concatenate([sampled_tensor(layer[name]) for name in names])


def sentences(found: Mapping[int, Source | None], count: int) -> list[str]:
    """What happened to the layers, in words; `count` is the number of A's layers."""
    lines, told = [], set[int]()
    for n, source in found.items():
        if source is None:
            lines.append(f"blk.{n} is none of A's layers, and no linear blend of two")
        elif source.second is not None:
            lines.append(f"blk.{n} is {source}")
        elif source.first != n and n not in told:
            back = found.get(source.first)
            if back and back.second is None and back.first == n:
                told.add(source.first)
                lines.append(f"blk.{n} and blk.{source.first} are exchanged")
            else:
                lines.append(f"blk.{n} is A's blk.{source.first}")
    used = {i for source in found.values() if source for i in (source.first, source.second)}
    gone = [f"blk.{n}" for n in range(count) if n not in used]
    if not found:
        return ["B has no layers"]
    if gone and None not in found.values():
        lines.append(f"{', '.join(gone)} of A {'are' if len(gone) > 1 else 'is'} not in B")
    return lines


def as_recipe(found: Mapping[int, Source | None], count: int) -> str | None:
    """The surgery that makes B's layers from A's `count`, in the language of `tinyq surgery`; None if it cannot be said.

    "" if every layer stayed.
    """
    if not found or list(found) != list(range(len(found))):
        return None
    sources = [source for source in found.values() if source is not None]
    if len(sources) < len(found):
        return None
    if all(source.second is None and source.first == n for n, source in enumerate(sources)) and len(sources) == count:
        return ""
    blends = [(n, source) for n, source in enumerate(sources) if source.second is not None]
    if not blends:
        return _order([source.first for source in sources], count)
    kept = [n if source.second is not None else source.first for n, source in enumerate(sources)]
    in_place = len(sources) == count and kept == list(range(count))
    taken = {n for n, _ in blends}
    if in_place and not any({source.first, source.second} & taken - {n} for n, source in blends):
        return " + ".join(f"{_interpolated(source)}, replace={n})" for n, source in blends)
    return _inserted(sources, count)


def _interpolated(source: Source) -> str:
    alpha = round(1.0 - source.weight, 3)
    return f"interpolate({source.first}:{source.second}, {alpha!r}"


def _order(order: Sequence[int], count: int) -> str:
    """A permutation of pairs as swaps, anything else as the path through A's layers."""
    moved = [(n, i) for n, i in enumerate(order) if n != i]
    if len(order) == count and all(order[i] == n for n, i in moved):
        return f"swap({', '.join(f'{n}:{i}' for n, i in moved if n < i)})"
    return f"path({_spans(order)})"


def _spans(order: Sequence[int]) -> str:
    """Layer numbers with rising runs as I..J."""
    runs: list[list[int]] = []
    for i in order:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _inserted(sources: Sequence[Source], count: int) -> str:
    """Blends inserted after the last of A's layers that they start from, then the path through the longer stack."""
    stack: list[int | Source] = list(range(count))
    steps = []
    for source in sources:
        if source.second is not None and source not in stack:
            first, second = stack.index(source.first), stack.index(source.second)
            steps.append(f"interpolate({first}:{second}, {round(1.0 - source.weight, 3)!r})")
            stack.insert(first + 1, source)
    order = [stack.index(source.first if source.second is None else source) for source in sources]
    if order != list(range(len(stack))):
        steps.append(f"path({_spans(order)})")
    return " + ".join(steps)
