"""Tests whether encoded blocks can be the output of llama.cpp's encoder for given weights and an unknown importance matrix.

An importance matrix affects only a block's scales: given the scales, every weight is rounded to the nearest level. There are
four tests; a tensor that fails one was not produced by the encoder.

1. **Levels** (per group). q2_K to q6_K, iq4_nl and iq4_xs round every weight to the nearest level of the stored scales
   (`quantize_row_*_impl` of ggml-quants.c, the last loop). The others round with a factor (q4_0, q5_0) or a factor and an
   offset (q4_1, q5_1) that the block does not store: some such values must give all of the group's levels. A scale of 0
   requires weights that are negligible relative to the rest of the block.
2. **Scales** (per group of q4_0, q5_0, q4_1, q5_1). They are a weighted least-squares fit with positive weights, so errors of
   both signs occur, at low levels as well as at high ones: values that lie on one side of all weights, or that a rotation
   would bring closer to all of them, are not such a fit.
3. **Error** (per tensor). The squared error is at most `MOST_ERROR` times that of the encoder without importance.
4. **Coincidence** (per tensor). With an importance matrix few blocks equal those encoded without one (at most `COINCIDENCE`);
   if many do, no matrix was used, and it cannot explain the blocks that differ.

The first two hold by construction for every positive importance, up to float rounding. They detect each weight that was moved
across the boundary between two levels: of weights changed by 1 % of their standard deviation, one in 30 at four bits.
A change of a scale of q4_0, q4_1, q5_0 or q5_1 alone is nearly always detected from a factor of two on; most smaller changes
could be the effect of some importance.
The limits of the other two are at least twice the largest values of a simulation: for each type 500 random matrices of 131,072
weights (normal, Laplace, Student's t with 4 degrees of freedom, off-centre; scales of 0.001 to 1) with random importances
similar to those of activations (log-normal over columns, σ up to 2, and up to one column in 500 larger by up to 1e5). None of
these 5,500 tensors (11 million blocks) raised an alarm: the false-alarm rate per tensor is below 6e-4 with 95 % confidence.
`tests/verification/test_false_alarms.py` repeats some of these runs. Importances that are zero, or non-zero in single columns
only, were not simulated.
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
"""Types that round with a factor that the block does not store."""
UNROUNDED = (IQ4_NL, IQ4_XS)
"""Types that round with the scale before its own rounding to F16."""
AFFINE = (Q4_1, Q5_1)
"""Types that round with a factor and an offset that the block does not store."""
FITTED = (Q4_0, Q5_0, Q4_1, Q5_1)
"""Types whose stored scale is the least-squares fit, rounded to F16."""


MOST_ERROR = 3.0
"""Largest squared error of a tensor, relative to that of the encoder without importance."""
COINCIDENCE = 0.25
"""Largest share of blocks that are equal with and without an importance matrix; twice the largest in the simulation."""
ALARM = 1e-9
"""A larger share counts as evidence if its probability by chance is below this."""
HALF = 2.0**-11
"""Largest relative rounding error of an F16 number."""
TINIEST = 2.0**-25
"""Half of the smallest positive F16 number: smaller numbers are rounded to 0."""
SLACK = 1e-3
"""Tolerance for float32 rounding at the boundary between two levels, in quantization steps."""
TURNS = 48
"""Number of bisection steps in the search for a factor."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Statistics of the differing blocks of a tensor, or of a part of it; two can be added.

    `odd` of `blocks` fail the test of levels or scales; `first_odd` is the index of the first of them in the tensor (-1 if
    there is none). `sum_sq` is the sum of squares of the source's weights in these blocks; `error` and `own_error` are the
    sums of squared differences from them, of the file and of the encoder without importance.
    `equal` counts the other blocks that equal the encoder's byte for byte and could have differed.
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
        """RMS of the differences from the source divided by the RMS of its weights, over the differing blocks."""
        return _root(self.error, self.sum_sq)

    @property
    def own_relative_error(self) -> float:
        """The same for the type's encoder without an importance matrix."""
        return _root(self.own_error, self.sum_sq)


def _root(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole else (math.inf if part else 0.0)


def examine(
    rows: FloatArray, raw: ByteArray, expected: ByteArray, own: ByteArray, dtype: TensorType, first: int = 0
) -> Evidence:
    """Statistics of encoded rows `raw` (n, row bytes) against the source's `rows` (n, k).

    `expected` are the encoder's bytes, and `own` those without importance; `first` is the index of the first block in the
    tensor. Only for block types with a grid.
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
    """Mask (n,) of the blocks that fail the test of levels or scales; `x`, `decoded`: (n, block), `raw`: (n, block bytes)."""
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
    """Mask (n, groups) of groups with scale 0 whose weights need a larger one, at least four times what is rounded to 0."""
    unit = np.abs(_half(raw, dtype.scales[0]))
    bound = 2 * np.abs(grid.levels).max() * np.where(unit == 0, 256 * TINIEST, unit)
    if len(dtype.scales) > 1:
        bound = bound + 2 * np.abs(_half(raw, dtype.scales[1]))
    return np.asarray((np.abs(x) > bound).any(axis=2), np.bool_)


def _some_factor(x: FloatArray, low: FloatArray, high: FloatArray) -> Mask:
    """Mask of the groups for which a factor a exists with low ≤ a·x ≤ high for all weights x of the group."""
    with np.errstate(all="ignore"):
        ends = np.stack([low / x, high / x])
        ends = np.sort(ends, axis=0)
    zero = x == 0
    least = np.where(zero, -np.inf, ends[0]).max(axis=1)
    most = np.where(zero, np.inf, ends[1]).min(axis=1)
    inside = (~zero | ((low <= 0) & (high >= 0))).all(axis=1)
    return np.asarray(inside & (least <= most + 1e-5 * np.abs(most)), np.bool_)


def _some_line(weights: FloatArray, lows: FloatArray, highs: FloatArray) -> Mask:
    """Mask of the groups for which a and b exist with low ≤ a·x + b ≤ high for all weights x of the group.

    For a given a such a b exists if gap(a) = max(low - a·x) - min(high - a·x) ≤ 0; gap is convex, and its minimum is found
    by bisection.
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
    """Mask (n, groups) of groups whose scale cannot be a least-squares fit with any positive weights.

    With a factor alone the weighted sum of level · error is 0, so both signs occur. With an offset the weighted sum of the
    errors is 0 too, so errors of one sign cannot be confined to low levels and those of the other to high levels.
    """
    error = x - decoded
    fuzz = HALF * (np.abs(decoded - offset) + np.abs(offset)) + 2.0**-24 * (np.abs(level) + 1)
    if dtype in AFFINE:
        top = 15 if dtype is Q4_1 else 31
        above, below = error >= -fuzz, error <= fuzz
        apart = _top(level, above) < -_top(-level, below)
        apart |= _top(level, below) < -_top(-level, above)
        apart |= _factor_apart(error, level - level.dtype.type(top), fuzz)
        # The encoder sets a positive offset to 0 and then fits the factor alone.
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
    """The highest level of each group at which `where` is true, or -inf."""
    return np.asarray(np.where(where, level, -np.inf).max(axis=2), np.float32)


def objection(found: Evidence) -> str:
    """Why no importance matrix can explain the differences; empty if one can."""
    if found.odd:
        return (
            f"{found.odd} of {found.blocks} differing blocks have levels or scales that no importance matrix gives, first in "
            f"block {found.first_odd}"
        )
    # Where the encoder's error is 0, the rounding of other scales to F16 can still cause one.
    ratio = found.error / max(found.own_error, found.sum_sq * HALF**2)
    if ratio > MOST_ERROR:
        return f"the squared error is {ratio:.3g} times the encoder's; expected at most {MOST_ERROR:g} times"
    if chance(found.equal, found.equal + found.blocks) < ALARM:
        return (
            f"{found.equal} other blocks are exactly as expected, but an importance matrix would have changed them too"
        )
    return ""


def chance(equal: int, blocks: int) -> float:
    """A Chernoff bound on the probability that `equal` of `blocks` blocks coincide by chance."""
    if not blocks or equal <= COINCIDENCE * blocks:
        return 1.0
    share, p = equal / blocks, COINCIDENCE
    rest = (1 - share) * math.log((1 - share) / (1 - p)) if share < 1 else 0.0
    return math.exp(-blocks * (share * math.log(share / p) + rest))
