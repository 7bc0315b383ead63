"""Finds the cause of the first bad point by trying: the reference is run again with each likely fault, and the one that gives
what llama.cpp computed is named, with the error that it leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import Literal, TypeVar

import numpy as np

from gguf_tools.evaluation.trace.compare import BY_CHOICE, BY_ORDER, PointError, Points, left_error, mask_for
from gguf_tools.evaluation.trace.feeding import ROPE_TENSORS, feeding
from gguf_tools.evaluation.trace.hypotheses import Hypothesis, hypotheses
from gguf_tools.evaluation.trace.in_file import of_layer
from gguf_tools.evaluation.trace.outside import faults, feeding_outside, left_by
from gguf_tools.evaluation.trace.passes import Passes
from gguf_tools.evaluation.trace.points import Doubles
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.model.spec import LayerSpec
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.reference.weights import Weights

Where = Literal["file", "engine", "unknown"]
Named = TypeVar("Named")
ENOUGH = 1e-2
"""A fault explains a point if it leaves at most this share of its error, or nothing that is beyond the tolerance."""

SURE = 1e-3
"""A fault that has a name of its own is named before what the file holds, if it leaves at most this share of the error, and no
more than rounding does."""

NOTHING = 1e-12
"""The NMSE that float32 arithmetic leaves of a point where nothing is wrong."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What was found out about a bad point: the fault in words, the NMSE that it leaves, where the fault is, and the tensors of
    the file that feed the point.

    The fault is in the `file` if its own weights and metadata give what llama.cpp computed, else in the `engine`, or in how tinyq
    reads the file.
    """

    text: str | None
    nmse: float | None
    where: Where
    tensors: tuple[str, ...] = ()


def find_cause(work: Work, n: int, first: PointError) -> tuple[Cause, float | None]:
    """The cause of the first bad point, of layer n (`OUTSIDE` for none), and the point's NMSE with the file's own weights.

    The latter is None if the file's metadata contradict its tensors.
    """
    if n == OUTSIDE:
        return _outside(work, first)
    x = work.input_of(n)
    assert x is not None
    target = _Target(work, n, first.point, x)
    left = target.left(Passes(work.mine, {})) if work.mine and n < len(work.mine.layers) else None
    floor = work.floor(n, first.point)
    tried = []
    for pair in _tried(work, n, target):
        tried.append(pair)
        if pair[1] <= _nothing(first):  # of those that leave nothing, the first is named
            break
    best = min(tried, key=lambda pair: pair[1], default=None)
    # What is in the file leaves less than the fault in words: nothing of the rounding of its weights.
    slack = 0.0
    if best and best[0].in_file:
        slack = max(4.0 * first.predicted, min(first.tolerance / 2.0, SURE * first.local.nmse))
    cause, nmse = _named(tried, first, slack) or (None, None)
    roles = (cause.role,) if cause and cause.role else feeding(first.point, work.expected.model.layer_tensors[n])
    names = [name for role in roles for name in work.names(n, role)]
    if first.point.endswith("_rope"):
        names += [name for name in work.source.tensors if name.startswith(ROPE_TENSORS)]
    tensors = tuple(dict.fromkeys(names))
    where = _where(left, max(floor, ENOUGH * first.local.nmse))
    return Cause(text=cause.text if cause else None, nmse=nmse, where=where, tensors=tensors), left


def _where(left: float | None, most: float) -> Where:
    """Where the fault is, given the NMSE that the file's own weights leave, and how much of it is nothing."""
    return "unknown" if left is None else "file" if left <= most else "engine"


def _nothing(first: PointError) -> float:
    """The NMSE that counts as nothing left of the first bad point's."""
    return min(NOTHING, first.local.nmse / 10.0)


def _named(tried: Sequence[tuple[Named, float]], first: PointError, slack: float) -> tuple[Named, float] | None:
    """The first of the faults that leave about as little as the best one, or `slack`, or None if that one leaves too much."""
    best = min((nmse for _, nmse in tried), default=inf)
    error = first.local.nmse
    if best > max(first.tolerance, ENOUGH * error if error < inf else 0.0) or best > error / 2.0:
        return None
    return next(pair for pair in tried if pair[1] <= max(4.0 * best, slack, _nothing(first)))


def _tried(work: Work, n: int, target: _Target) -> Iterator[tuple[Hypothesis, float]]:
    """Each fault with the NMSE that it leaves at the point; those of the file's own tensors and metadata last."""
    reference = work.passes.reference
    spec, weights = reference.spec.layers[n], reference.layers[n]
    others = {m: other for m, other in enumerate(reference.layers) if m != n}
    own = work.own.spec.layers if work.own else ()
    stated = own[n] if n < len(own) else None
    for one in hypotheses(spec, weights, stated, others):
        yield one, target.left(work.passes, one.spec, one.weights)
    if work.mine:
        for one in of_layer(work, n, work.mine):
            yield one, target.left(work.stored, one.spec, one.weights)


class _Target:
    """What llama.cpp computed at the first bad point, and for which tokens the reference is held to it.

    The tokens are those whose experts both sides selected alike without a fault, so that a fault that changes the selection
    cannot leave out the tokens that speak against it. Where llama.cpp selects another number of experts, a fault is held to those
    that it selects alike, if they are half of the tokens or more.
    """

    def __init__(self, work: Work, n: int, point: str, x: Doubles) -> None:
        self.n, self.point, self.x, self.graph = n, point, x, work.graph
        mine = work.passes.layer(n, x)
        self.values = self._found(mine[point].shape[1])
        self.position = work.position if len(self.values) > 1 else None
        self.other_width = "moe.chosen" in mine and not self._chosen(mine)
        self.mask = self._mask(mine)
        self.before = self._before(mine)

    def _before(self, mine: Points) -> dict[str, tuple[Doubles, float]]:
        """llama.cpp's values of the points before this one, and the largest NMSE there that a fault may leave."""
        found = {}
        for point in takewhile(lambda point: point != self.point, mine):
            values = self.graph.values(self.n, point, mine[point].shape[1])
            if values is not None and point not in (*BY_ORDER, *BY_CHOICE, "moe.chosen"):
                found[point] = values, 10.0 * left_error(mine[point], values) + NOTHING
        return found

    def _chosen(self, mine: Points) -> Points:
        """llama.cpp's selection of experts, if it has as many as `mine`."""
        chosen = self.graph.values(self.n, "moe.chosen", mine["moe.chosen"].shape[1]) if "moe.chosen" in mine else None
        return {} if chosen is None else {"moe.chosen": chosen}

    def _mask(self, mine: Points) -> Doubles | None:
        mask = mask_for(self.point, mine, self._chosen(mine))
        if self.position is None:
            return mask
        at = np.asarray(np.arange(len(self.values)) == self.position)
        return at if mask is None else np.asarray(mask & at)

    def _found(self, width: int) -> Doubles:
        found = self.graph.values(self.n, self.point, width)
        assert found is not None
        return found

    def left(self, passes: Passes, spec: LayerSpec | None = None, weights: Weights | None = None) -> float:
        """The NMSE of the point with a layer's spec or weights exchanged; infinite if the layer cannot be run so."""
        try:
            points = passes.layer(self.n, self.x, spec, weights)
        except (RuntimeError, KeyError, ValueError):  # shapes that do not fit: this fault cannot be the one
            return inf
        found = points.get(self.point)
        if found is None or found.shape != self.values.shape:
            return inf
        for point, (values, most) in self.before.items():
            if point in points and points[point].shape == values.shape and left_error(points[point], values) > most:
                return inf
        if self.point == "moe.chosen":
            return float((np.sort(found, axis=1) != np.sort(self.values, axis=1)).any(axis=1).mean())
        mask = self._mask(points) if self.other_width else self.mask
        if self.other_width and mask is not None and 2 * mask.sum() < len(mask):
            return inf
        return left_error(found, self.values, mask)


def _outside(work: Work, first: PointError) -> tuple[Cause, float | None]:
    """The cause of a bad embedding, final norm or logits."""
    own = left_by(work, first, work.mine) if work.mine else None
    tried = [((text, role), left_by(work, first, changed)) for text, role, changed in faults(work)]
    found = _named(tried, first, 4.0 * first.predicted)
    (text, role), nmse = found or ((None, ""), None)
    where = _where(own, max(first.tolerance, ENOUGH * first.local.nmse))
    roles = (role,) if role else feeding_outside(first.point)
    named = tuple(dict.fromkeys(name for role in roles for name in work.names(OUTSIDE, role)))
    return Cause(text=text, nmse=nmse, where=where, tensors=named), own
