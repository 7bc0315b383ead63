"""Whether a score, or the difference of two, is more than chance: intervals and tests on per-item results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

SIGNIFICANCE = 0.05
"""Below this p-value a difference counts as shown."""

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """Two models on the same items.

    `difference`: share of items the second has right − share the first has right.
    `first_only`, `second_only`: items that only the first, or only the second, has right.
    `p_value`: two-sided and exact, of the hypothesis that both are equally likely.
    """

    difference: float
    first_only: int
    second_only: int
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the models differ by more than chance, at the 5 % level."""
        return self.p_value < SIGNIFICANCE


@dataclass(frozen=True)
class Bootstrap:
    """A statistic of the items as they are, its percentile interval and the two-sided p-value of its being 0."""

    estimate: float
    interval: Interval
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval.low > 0 or self.interval.high < 0


def wilson(right: int, total: int, confidence: float = 0.95) -> Interval:
    """The score interval of a share of `right` in `total` (Wilson 1927); (0, 1) where nothing was counted.

    Raises ValueError where `right` is not in 0…total or `confidence` not in (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total} is not a share")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    # The ends are exact at 0 and 1; rounding would miss them.
    low = 0.0 if right == 0 else centre - half
    return Interval(low, 1.0 if right == total else centre + half)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """The exact test of McNemar (1947): a two-sided binomial test on the items that only one of the two has right.

    The p-value is 1 where there is no such item. Raises ValueError where the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"the first has {len(first)} items and the second {len(second)}; they must be the same items")
    first_only = sum(1 for a, b in zip(first, second, strict=True) if a and not b)
    second_only = sum(1 for a, b in zip(first, second, strict=True) if b and not a)
    difference = (second_only - first_only) / len(first) if len(first) else 0.0
    return McNemar(difference, first_only, second_only, _sign_test(first_only, second_only))


def _sign_test(one: int, other: int) -> float:
    """P of a split at least this uneven of one + other fair coins; exact, in integers."""
    coins = one + other
    tail = term = 1
    for i in range(min(one, other)):
        term = term * (coins - i) // (i + 1)
        tail += term
    return min(1.0, float(Fraction(2 * tail, 1 << coins)))


def bootstrap(
    samples: Sequence[Float],
    combine: Callable[[list[Float]], Float],
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """The stratified bootstrap of a statistic of means (Efron & Tibshirani 1993): percentile interval and p-value.

    `samples`: a stratum each, (items, k): items are drawn with replacement within a stratum, all k columns of an item
    together, so that columns of two models stay paired. `combine` gets one array of means per stratum, (r, k), and
    returns the r statistics, (r,). p is twice the smaller share of resamples at or beyond 0 on one side, with 1 added
    to count and total (Davison & Hinkley 1997, 4.2.3). The same seed gives the same result.

    Raises ValueError for strata that are not (items, k) with at least one item, without any stratum or resample, where
    `combine` returns another shape, or where `confidence` is not in (0, 1).
    """
    _check_confidence(confidence)
    if resamples < 1 or not samples:
        raise ValueError(f"a bootstrap needs a resample and a stratum, not {resamples} and {len(samples)}")
    for number, sample in enumerate(samples):
        if sample.ndim != 2 or not len(sample):
            raise ValueError(f"stratum {number} has shape {sample.shape}; it must be (items, k) with items")
    rng = np.random.Generator(np.random.PCG64(seed))
    estimate = float(_combined(combine, [sample.mean(axis=0, keepdims=True) for sample in samples], 1)[0])
    drawn = _combined(combine, [_resampled_means(sample, resamples, rng) for sample in samples], resamples)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    beyond = 1 + min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Bootstrap(estimate, Interval(float(low), float(high)), min(1.0, 2 * beyond / (resamples + 1)))


def _resampled_means(sample: Float, resamples: int, rng: np.random.Generator) -> Float:
    """Means of `resamples` draws of all items with replacement, (resamples, k), in bounded memory."""
    items, columns = sample.shape
    rows = max(1, _BLOCK_BYTES // (8 * items * max(columns, 1)))
    means = np.empty((resamples, columns))
    for start in range(0, resamples, rows):
        chosen = rng.integers(0, items, (min(rows, resamples - start), items))
        means[start : start + rows] = sample[chosen].mean(axis=1)
    return means


def _combined(combine: Callable[[list[Float]], Float], means: list[Float], count: int) -> Float:
    result = combine(means)
    if result.shape != (count,):
        raise ValueError(f"combine returned shape {result.shape} for {count} rows of means; it must be ({count},)")
    return result


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
