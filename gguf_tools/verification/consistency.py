"""Whether encoded blocks are what llama.cpp's encoder makes of given weights under some importance matrix, which is not known.

An importance matrix moves a block's scales, and nothing else: once they are fixed, every weight goes to the level next to it.
Four tests follow; a tensor that fails one is no product of the encoder.

1. **Levels** (each group). q2_K to q6_K, iq4_nl and iq4_xs round every weight to the nearest level of the scales that they
   store (`quantize_row_*_impl` of ggml-quants.c, the last loop). The others round by a factor (q4_0, q5_0) or a factor and an
   offset (q4_1, q5_1) that the block does not store: there must be one that gives all of the group's levels. A scale of 0
   needs weights that are next to nothing beside the block's others.
2. **Scales** (each group of q4_0, q5_0, q4_1, q5_1). They are a least-squares fit with positive weights, so errors of both signs
   occur, among the same levels: a fit that lies to one side of the weights, or could be turned to lie nearer to all of them, is
   none.
3. **Error** (tensor). The squared error against that of the encoder without importance, at most `MOST_ERROR` times as large.
4. **Coincidence** (tensor). With an importance matrix few blocks come out as they do without (at most `COINCIDENCE`); where
   many do, the matrix was not in use, and the blocks that differ are not explained by it.

The first two hold by construction for every positive importance, up to float rounding. They notice each weight that was moved
across the edge between two levels: of weights that were changed by 1 % of their standard deviation, one in 30 at four bits.
A scale of q4_0, q4_1, q5_0 or q5_1 that was changed alone is noticed nearly always from a factor of two on; a smaller change
is, more often than not, one that some importance would give.
The limits of the others are about twice the largest values of a simulation: for each type 500 random matrices of 131,072
weights (normal, Laplace, Student's t with 4 degrees of freedom, off-centre; scales of 0.001 to 1) under random importances as
activations have them (log-normal from column to column, σ up to 2, and up to one column in 500 larger by up to 1e5). None of
these 5,500 tensors (11 million blocks) raised an alarm: the false-alarm rate of a tensor is below 6e-4 with 95 % confidence.
`tests/verification/test_false_alarms.py` repeats a part of it. Importances that are zero, or that lie on single columns alone,
are outside of what was simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.encode import decode_rows
from quant.grids import ByteArray, FloatArray, Grid, grid_of
from quant.types import IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q5_0, Q5_1, TensorType

Mask = NDArray[np.bool_]

LINEAR = (Q4_0, Q5_0)
"""Rounded by a factor that the block does not store."""
UNROUNDED = (IQ4_NL, IQ4_XS)
"""Rounded by the scale as it was before it became an F16 number."""
AFFINE = (Q4_1, Q5_1)
"""Rounded by a factor and an offset that the block does not store."""
FITTED = (Q4_0, Q5_0, Q4_1, Q5_1)
"""The stored scale is the least-squares fit itself, but for its rounding to F16."""


MOST_ERROR = 3.0
"""The largest squared error of a tensor, in parts of that of the encoder without importance."""
COINCIDENCE = 0.25
"""Share of blocks that come out the same with and without an importance matrix; the largest seen is half of it."""
ALARM = 1e-9
"""Probability below which a larger share is not called chance."""
HALF = 2.0**-11
"""Relative rounding of an F16 number."""
TINIEST = 2.0**-25
"""Half of the smallest F16 number: what is below becomes 0."""
SLACK = 1e-3
"""Steps by which float32 arithmetic may err about the edge between two levels."""
TURNS = 48
"""Bisections of the search for a factor."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the differing blocks of a tensor, or of a part of it, show; two add up.

    `odd` of `blocks` fail the test of levels or scales, the first of them `first_odd` (counted in the tensor, -1 if there is
    none). `sum_sq` is the sum of squares of the source's weights, `error` and `own_error` of the differences from them: of
    the file, and of the encoder without importance.
    `equal` other blocks are byte for byte what the encoder gives and could have come out otherwise.
    """

    blocks: int = 0
    equal: int = 0
    odd: int = 0
    first_odd: int = -1
    sum_sq: float = 0.0
    error: float = 0.0
    own_error: float = 0.0

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            blocks=self.blocks + other.blocks,
            equal=self.equal + other.equal,
            odd=self.odd + other.odd,
            first_odd=self.first_odd if self.first_odd >= 0 else other.first_odd,
            sum_sq=self.sum_sq + other.sum_sq,
            error=self.error + other.error,
            own_error=self.own_error + other.own_error,
        )

    @property
    def relative_error(self) -> float:
        """RMS of the differences from the source in parts of the RMS of its weights, both of the differing blocks."""
        return _root(self.error, self.sum_sq)

    @property
    def own_relative_error(self) -> float:
        """What the type's encoder reaches there without an importance matrix."""
        return _root(self.own_error, self.sum_sq)


def _root(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole else (math.inf if part else 0.0)


def examine(
    rows: FloatArray, raw: ByteArray, expected: ByteArray, own: ByteArray, dtype: TensorType, first: int = 0
) -> Evidence:
    """What encoded rows `raw` (n, row bytes) show of the source's `rows` (n, k).

    `expected` are the bytes that the encoder gives, and `own` those without importance; `first` is the place of the first
    block in the tensor. Block types with a grid only.
    """
    k = rows.shape[1]
    grid = grid_of(dtype)
    assert grid is not None
    mine = raw.reshape(-1, dtype.block_bytes)
    same = (mine == expected.reshape(mine.shape)).all(axis=1)
    x = rows.reshape(len(mine), dtype.block)
    own_error = _squares(decode_rows(own, dtype, k).reshape(x.shape) - x)
    telling = own_error > 0
    differ = np.flatnonzero(~same)
    if not len(differ):
        return Evidence(equal=int(telling.sum()))
    x, mine, own_error = x[differ], np.ascontiguousarray(mine[differ]), own_error[differ]
    decoded = decode_rows(mine, dtype, dtype.block)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.nan_to_num(_squares(decoded - x), nan=np.inf, posinf=np.inf)
    odd = np.flatnonzero(odd_blocks(x, mine, decoded, dtype, grid))
    sum_sq = _squares(x)
    return Evidence(
        blocks=len(differ),
        equal=int((same & telling).sum()),
        odd=len(odd),
        first_odd=first + int(differ[odd[0]]) if len(odd) else -1,
        sum_sq=float(sum_sq.sum()),
        error=float(error.sum()),
        own_error=float(own_error.sum()),
    )


def _squares(x: FloatArray) -> NDArray[np.float64]:
    return np.asarray(np.square(x, dtype=np.float64).sum(axis=1), np.float64)


def odd_blocks(x: FloatArray, raw: ByteArray, decoded: FloatArray, dtype: TensorType, grid: Grid) -> Mask:
    """Which blocks (n,) fail the tests of levels and scales; `x` and `decoded` are (n, block), `raw` (n, block bytes)."""
    groups = (len(x), -1, grid.group)
    x, decoded = x.reshape(groups), decoded.reshape(groups)
    scale, offset = (part[..., None] for part in grid.read(raw))
    broken = ~(np.isfinite(scale) & np.isfinite(offset))[..., 0]
    at = grid.index(decoded, scale, offset)
    low, high = (bound[at] for bound in grid.bounds)
    with np.errstate(all="ignore"):
        level = (x - offset) / scale
        slack = SLACK + 2.0**-20 * (np.abs(level) + np.abs(offset / scale))
        if dtype in UNROUNDED:
            lost = np.clip(TINIEST / np.abs(_half(raw, dtype.scales[0])), HALF, 0.5)
            slack = slack + np.abs(level) * lost / (1 - lost)
        odd = ((level < low - slack) | (level > high + slack)).any(axis=2)
    flat = scale[..., 0] == 0
    odd &= ~flat
    if dtype in LINEAR:
        odd[odd] = ~_some_factor(x[odd], low[odd], high[odd])
    if dtype in AFFINE:
        odd[odd] = ~_some_line(x[odd], low[odd], high[odd])
    if dtype in FITTED:
        odd |= _one_sided(x, decoded, grid.levels[at], offset, dtype) & (scale[..., 0] != 0)
    odd |= flat & _varied(x - offset, raw, dtype, grid)
    return np.asarray((odd | broken).any(axis=1), np.bool_)


def _half(raw: ByteArray, at: int) -> FloatArray:
    """The F16 number at byte `at` of each block, (n, 1, 1)."""
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2").astype(np.float32)[..., None]


def _varied(x: FloatArray, raw: ByteArray, dtype: TensorType, grid: Grid) -> Mask:
    """Groups (n, groups) of scale 0 whose weights need a larger one: four times what rounding makes 0 of."""
    unit = np.abs(_half(raw, dtype.scales[0]))
    bound = 2 * np.abs(grid.levels).max() * np.where(unit == 0, 256 * TINIEST, unit)
    if len(dtype.scales) > 1:
        bound = bound + 2 * np.abs(_half(raw, dtype.scales[1]))
    return np.asarray((np.abs(x) > bound).any(axis=2), np.bool_)


def _some_factor(x: FloatArray, low: FloatArray, high: FloatArray) -> Mask:
    """For which groups (n, group) some factor a has low ≤ a·x ≤ high throughout."""
    with np.errstate(all="ignore"):
        ends = np.stack([low / x, high / x])
        ends = np.sort(ends, axis=0)
    zero = x == 0
    least = np.where(zero, -np.inf, ends[0]).max(axis=1)
    most = np.where(zero, np.inf, ends[1]).min(axis=1)
    inside = (~zero | ((low <= 0) & (high >= 0))).all(axis=1)
    return np.asarray(inside & (least <= most + 1e-5 * np.abs(most)), np.bool_)


def _some_line(weights: FloatArray, lows: FloatArray, highs: FloatArray) -> Mask:
    """For which groups (n, group) some a and b have low ≤ a·x + b ≤ high throughout, x being the weights.

    For a given a there is such a b where gap(a) = max(low - a·x) - min(high - a·x) ≤ 0, a convex function whose least value
    is found by bisection.
    """
    x, low, high = (part.astype(np.float64) for part in (weights, lows, highs))
    span = x.max(axis=1) - np.minimum(x.min(axis=1), 0)
    levels = np.where(np.isfinite(high), high, low).max(axis=1) + 1
    left, right = np.zeros(len(x)), 8 * levels / np.maximum(span, np.finfo(np.float32).tiny)
    found = np.zeros(len(x), np.bool_)
    each = np.arange(len(x))
    for _ in range(TURNS):
        a = (left + right) / 2
        over, under = low - a[:, None] * x, high - a[:, None] * x
        i, j = over.argmax(axis=1), under.argmin(axis=1)
        found |= over[each, i] - under[each, j] <= SLACK
        rises = x[each, j] > x[each, i]
        left, right = np.where(rises, left, a), np.where(rises, a, right)
    return found


def _one_sided(x: FloatArray, decoded: FloatArray, level: FloatArray, offset: FloatArray, dtype: TensorType) -> Mask:
    """Groups (n, groups) whose scale is no least-squares fit, whatever the weights.

    With a factor alone the weighted sum of level · error is 0, so both signs occur. With an offset as well the sum of the
    errors is 0 too: then positive and negative errors are not apart, at low levels here and at high levels there.
    """
    error = x - decoded
    fuzz = HALF * (np.abs(decoded - offset) + np.abs(offset)) + 2.0**-24 * (np.abs(level) + 1)
    if dtype in AFFINE:
        top = 15 if dtype is Q4_1 else 31
        above, below = error >= -fuzz, error <= fuzz
        apart = _top(level, above) < -_top(-level, below)
        apart |= _top(level, below) < -_top(-level, above)
        apart |= _factor_apart(error, level - level.dtype.type(top), fuzz)
        # An offset that would be positive is set to 0, and then the factor alone is fitted.
        fits_alone = (offset[..., 0] == 0) & ~_factor_apart(error, level, fuzz)
        return np.asarray(apart & ~fits_alone, np.bool_) | _factor_apart(error, level, fuzz)
    return _factor_apart(error, level, fuzz)


def _factor_apart(error: FloatArray, level: FloatArray, fuzz: FloatArray) -> Mask:
    counts = level != 0
    with np.errstate(invalid="ignore"):  # of scales that are infinite
        side = error * np.sign(level)
    both = ((side >= -fuzz) & counts).any(axis=2) & ((side <= fuzz) & counts).any(axis=2)
    return np.asarray(~both & counts.any(axis=2), np.bool_)


def _top(level: FloatArray, where: Mask) -> FloatArray:
    """The highest level of each group at which `where` holds, -inf where it holds nowhere."""
    return np.asarray(np.where(where, level, -np.inf).max(axis=2), np.float32)


def objection(found: Evidence) -> str:
    """Why no importance matrix explains what was found; empty where one does."""
    if found.odd:
        return (
            f"{found.odd} of {found.blocks} differing blocks have levels or scales that no importance gives, the first is "
            f"block {found.first_odd}"
        )
    # Where the encoder makes no error, the rounding of its scales may still make one.
    ratio = found.error / max(found.own_error, found.sum_sq * HALF**2)
    if ratio > MOST_ERROR:
        return f"the squared error is {ratio:.3g} times the encoder's, at most {MOST_ERROR:g} expected"
    if chance(found.equal, found.equal + found.blocks) < ALARM:
        return f"{found.equal} other blocks are exactly as expected, which an importance matrix would have changed too"
    return ""


def chance(equal: int, blocks: int) -> float:
    """An upper bound (Chernoff) of the probability that so many of so many blocks coincide by chance."""
    if not blocks or equal <= COINCIDENCE * blocks:
        return 1.0
    share, p = equal / blocks, COINCIDENCE
    rest = (1 - share) * math.log((1 - share) / (1 - p)) if share < 1 else 0.0
    return math.exp(-blocks * (share * math.log(share / p) + rest))
