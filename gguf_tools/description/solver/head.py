"""The head, solved alone: logits lie in the column space of the output matrix, whatever the layers compute.

Least squares gives the final hidden state at each position. Divided by the right norm weights it has the same RMS everywhere (and
a mean of 0 after a layer norm), and that RMS is the scale of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.description.assignment import Assignment, NormSlots
from gguf_tools.description.solver.evidence import SPANS, Evidence
from gguf_tools.sources.checkpoint import Checkpoint

Matrix = NDArray[np.float64]
UNWEIGHTED = NormSlots()
POSITIONS = 96
"""Positions that the head is solved from."""
FAR = 0.95
"""Share of a soft cap up to which a logit in float32 still tells what it was before."""
CAPS = (15.0, 20.0, 30.0, 50.0)
"""Soft caps that are in use, tried first."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The solved head. `output` as in `Choices`; `span` is the share of the logits outside the matrix's span.

    `final` is the norm before the output. `spread` is the relative spread of the RMS over positions after the norm's weights are
    divided out. `problem` says what does not fit, or is empty.
    """

    output: int
    span: float
    softcap: float | None = None
    final: NormSlots = UNWEIGHTED
    offset: float = 0.0
    centred: bool = False
    scale: float = 1.0
    spread: float = 0.0
    problem: str = ""


def sampled_rows(vocabulary: int, hidden: int) -> NDArray[np.int64]:
    """Random rows of the vocabulary, four times as many as the hidden size, or all."""
    if vocabulary <= 4 * hidden + 64:
        return np.arange(vocabulary)
    return np.sort(np.random.default_rng(0).choice(vocabulary, 4 * hidden + 64, replace=False))


def solve_head(assignment: Assignment, checkpoint: Checkpoint, given: Evidence, rows: NDArray[np.int64]) -> Head | None:
    """The head, or None where the vocabulary is too small for the test (not more tokens than dimensions)."""
    hidden = assignment.structure.hidden
    if len(rows) < hidden + 8:
        return None
    logits = np.concatenate([given.logits[n][:, rows] for n in given.seen]).astype(np.float64)
    if len(logits) > POSITIONS:
        logits = logits[np.linspace(0, len(logits) - 1, POSITIONS).astype(int)]
    bias = assignment.outside.output_bias
    if bias:
        logits = logits - checkpoint.tensors[bias].array()[rows]
    count = len(assignment.outside.matrices)
    places = [*range(1, count), 0] if count > 1 else [-1]
    spans = {n: _Span(_matrix(assignment, checkpoint, n, rows)) for n in places}
    best = min(places, key=lambda n: spans[n].residual(logits))
    span = spans[best]
    residual, cap = span.residual(logits), None
    limit = SPANS[given.dtype]
    gain = 1.2 if given.dtype in ("bfloat16", "float16") else 10.0
    for n in places:
        found = _softcap(spans[n], logits)
        if found and spans[n].residual(_uncapped(logits, found)) * gain < residual:
            best, span, cap = n, spans[n], found
            residual = span.residual(_uncapped(logits, cap))
    if residual > limit and (masked := _saturated(spans, logits, limit)) is not None:
        best, cap, residual = masked
        states = spans[best].within(logits, cap)[1]
        return _final_norm(assignment, checkpoint, states, Head(output=best, span=residual, softcap=cap), given)
    if residual > limit:
        centred = min(_Span(spans[n].centred()).residual(logits - logits.mean(1, keepdims=True)) for n in places)
        if given.probabilities:
            problem = "these are probabilities: give the raw logits, before the softmax"
        elif centred < limit:
            problem = "these are log-probabilities: give the raw logits, before the (log-)softmax"
        else:
            problem = (
                "the logits do not lie in the span of any output matrix: they come from other weights, or from another step of "
                "the training"
            )
        return Head(output=best, span=residual, problem=problem)
    states = span.solve(logits if cap is None else _uncapped(logits, cap))
    return _final_norm(assignment, checkpoint, states, Head(output=best, span=residual, softcap=cap), given)


def _matrix(assignment: Assignment, checkpoint: Checkpoint, n: int, rows: NDArray[np.int64]) -> Matrix:
    name, turned = assignment.outside.matrices[max(n, 0)]
    array = checkpoint.tensors[name].array()
    return (array.T if turned else array)[rows].astype(np.float64)


class _Span:
    """The column space of a matrix of shape (rows, hidden)."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self.q, self.r = np.linalg.qr(matrix)

    def residual(self, logits: Matrix) -> float:
        """The share of the logits, shape (positions, rows), outside the span."""
        outside = logits - (logits @ self.q) @ self.q.T
        return float(np.square(outside).sum() / np.square(logits).sum())

    def solve(self, logits: Matrix) -> Matrix:
        """The states, shape (positions, hidden), that give the logits."""
        return np.asarray(np.linalg.lstsq(self.r, (logits @ self.q).T, rcond=None)[0].T, np.float64)

    def within(self, logits: Matrix, cap: float) -> tuple[float, Matrix]:
        """As `residual` and `solve`, from those logits of each position that are not near the cap, undone for them.

        Near the cap rounding hides what a logit was. Positions with too few others are left out.
        """
        states, outside, whole = [], 0.0, 0.0
        for row in logits:
            kept = np.abs(row) < FAR * cap
            if kept.sum() < self.matrix.shape[1] + 8:
                continue
            wanted = _uncapped(row[kept], cap)
            state = np.linalg.lstsq(self.matrix[kept], wanted, rcond=None)[0]
            outside += float(np.square(self.matrix[kept] @ state - wanted).sum())
            whole += float(np.square(wanted).sum())
            states.append(state)
        return (outside / whole if whole else np.inf), np.array(states)

    def centred(self) -> Matrix:
        """The matrix without each column's mean: what is left of it in logits without their mean."""
        return np.asarray(self.matrix - self.matrix.mean(0), np.float64)


def _uncapped(logits: Matrix, cap: float) -> Matrix:
    return cap * np.arctanh(np.clip(logits / cap, -1 + 1e-15, 1 - 1e-15))


def _saturated(spans: dict[int, _Span], logits: Matrix, limit: float) -> tuple[int, float, float] | None:
    """(output, cap, residual) where a soft cap is so low that many logits are near it; None if that explains nothing."""
    some, least = logits[:: max(len(logits) // 8, 1)], float(np.abs(logits).max())
    for n, span in spans.items():
        grid = [least * factor for factor in np.linspace(1.0, 1.5, 26)]
        low = min(grid, key=lambda cap: span.within(some, cap)[0])
        low, high = max(low / 1.03, least * (1 - 1e-7)), low * 1.03
        ratio = (5**0.5 - 1) / 2
        for _ in range(40):
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            better = span.within(some, left)[0] < span.within(some, right)[0]
            low, high = (low, right) if better else (left, high)
        cap = (low + high) / 2
        residual = span.within(some, cap)[0]
        if residual < limit:
            return n, cap, residual
    return None


def _softcap(span: _Span, logits: Matrix) -> float | None:
    """The soft cap with which the logits lie best in the span: by the usual caps and a grid, then by golden sections."""
    least = float(np.abs(logits).max()) * (1 + 1e-9)
    if not least:
        return None
    grid = [least * 10**x for x in np.linspace(0.0005, 2, 40)] + [cap for cap in CAPS if cap > least]
    values = {cap: span.residual(_uncapped(logits, cap)) for cap in grid}
    best = min(values, key=lambda cap: values[cap])
    low, high = best / 1.15, best * 1.15
    ratio = (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        ours = [span.residual(_uncapped(logits, cap)) if cap > least else np.inf for cap in (left, right)]
        low, high = (low, right) if ours[0] < ours[1] else (left, high)
    found = (low + high) / 2
    for cap in CAPS:
        if cap > least and span.residual(_uncapped(logits, cap)) <= 1.05 * span.residual(_uncapped(logits, found)):
            return cap
    return found if found > least and found < 100 * least else None


def _final_norm(assignment: Assignment, checkpoint: Checkpoint, states: Matrix, head: Head, given: Evidence) -> Head:
    """The norm before the output, and the scale of the logits."""
    found = min(
        _norms(assignment, checkpoint, states), key=lambda item: (item.spread > 1e-3, item.spread), default=None
    )
    limit = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}[given.dtype]
    if found is None or found.spread > limit:
        spread = f"{found.spread:.1e}" if found else "none"
        problem = f"no norm of the final hidden state explains the logits (relative spread {spread})"
        return Head(output=head.output, span=head.span, softcap=head.softcap, problem=problem)
    return Head(
        output=head.output,
        span=head.span,
        softcap=None if head.softcap is None else float(head.softcap),
        final=found.final,
        offset=found.offset,
        centred=found.centred,
        scale=found.scale,
        spread=found.spread,
    )


def _norms(assignment: Assignment, checkpoint: Checkpoint, states: Matrix) -> Iterator[Head]:
    """Each candidate for the final norm, with the spread that it leaves."""
    vectors = [name for norm in assignment.outside.norms for name in (norm.weight, norm.bias) if name]
    others = [NormSlots(first, second) for first in vectors for second in (None, *vectors) if first != second]
    for norm in dict.fromkeys([*assignment.outside.norms, *others, UNWEIGHTED]):
        weight = checkpoint.tensors[norm.weight].array().astype(np.float64).reshape(-1) if norm.weight else None
        bias = checkpoint.tensors[norm.bias].array().astype(np.float64).reshape(-1) if norm.bias else None
        for offset in (0.0, 1.0) if weight is not None else (0.0,):
            whole = np.ones(states.shape[1]) if weight is None else weight + offset
            kept = np.abs(whole) > 1e-6
            if kept.mean() < 0.9:
                continue
            plain = states[:, kept] / whole[kept]
            for scale, unit in _unbiased(plain, None if bias is None else bias[kept] / whole[kept]):
                sizes = np.sqrt(np.square(unit).mean(1))
                size = float(sizes.mean())
                if not size:
                    continue
                centred = float(np.abs(unit.mean(1)).max()) < 1e-3 * size and bool(kept.all())
                yield Head(
                    output=0,
                    span=0,
                    final=norm,
                    offset=offset,
                    centred=centred,
                    scale=scale * size,
                    spread=float(sizes.std()) / size,
                )


def _unbiased(plain: Matrix, shift: Matrix | None) -> Iterator[tuple[float, Matrix]]:
    """(scale of the logits, normed states) where a norm's bias, divided by its weights, is `shift`, or there is none.

    With a scale s the states divided by the weights are s · (normed + shift). It is 1, or what leaves a layer norm's mean of 0.
    """
    if shift is None:
        yield 1.0, plain
        return
    yield 1.0, plain - shift
    scale = float(plain.mean() / shift.mean()) if shift.mean() else 1.0
    if scale > 0:
        yield scale, plain / scale - shift
