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

    def as_list(self) -> list[float]:
        """Both ends, as JSON has them."""
        return [self.low, self.high]


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
    """A statistic of the items as they are, and its percentile interval."""

    estimate: float
    interval: Interval


@dataclass(frozen=True)
class Paired:
    """How much a statistic of the second model exceeds that of the first on the same items.

    `interval`: by the bootstrap. `p_value`: two-sided, of the hypothesis that which model gave which of an item's two
    results is chance.
    """

    estimate: float
    interval: Interval
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the models differ by more than chance, at the 5 % level."""
        return self.p_value < SIGNIFICANCE


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
    """The stratified bootstrap of a statistic of means (Efron & Tibshirani 1993) and its percentile interval.

    `samples`: a stratum each, (items, k): items are drawn with replacement within a stratum, all k columns of an item
    together, so that columns of two models stay paired. `combine` gets one array of means per stratum, (r, k), and
    returns the r statistics, (r,). The same seed gives the same result.

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
    return Bootstrap(estimate, Interval(float(low), float(high)))


def paired_difference(
    first: Sequence[Float],
    second: Sequence[Float],
    combine: Callable[[list[Float]], Float],
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Paired:
    """The difference of two models in a statistic of means: bootstrap interval and permutation test.

    `first` and `second` are a stratum each, (items, k), of the same items; `combine` as in `bootstrap`, for one model.
    The test exchanges the models' results of each item by the toss of a coin (Fisher's randomization test); p is the
    share of exchanges that differ at least as much, with 1 added to count and total (Davison & Hinkley 1997, 4.2.5).
    With few items it stays as careful as McNemar's test, which a percentile interval does not.

    Raises ValueError as `bootstrap`, and where the two models' strata differ in shape.
    """
    if [a.shape for a in first] != [b.shape for b in second]:
        raise ValueError("the two models have strata of different shapes; they must be the same items")
    columns = [a.shape[-1] for a in first]

    def change(means: list[Float]) -> Float:
        one = [mean[:, :k] for mean, k in zip(means, columns, strict=True)]
        other = [mean[:, k:] for mean, k in zip(means, columns, strict=True)]
        result: Float = combine(other) - combine(one)
        return result

    both = [np.concatenate([a, b], axis=-1) for a, b in zip(first, second, strict=True)]
    found = bootstrap(both, change, resamples, seed, confidence)
    rng = np.random.Generator(np.random.PCG64(seed))
    exchanged = change([_exchanged_means(a, b, resamples, rng) for a, b in zip(first, second, strict=True)])
    # Exchanges that come to the same may differ in the last bits.
    extreme = int((np.abs(exchanged) >= abs(found.estimate) * (1 - 1e-9) - 1e-12).sum())
    return Paired(found.estimate, found.interval, (1 + extreme) / (1 + resamples))


def _exchanged_means(first: Float, second: Float, resamples: int, rng: np.random.Generator) -> Float:
    """Means of both models, (resamples, 2k), after items changed sides."""
    gain = (second - first) / len(first)
    moved = np.empty((resamples, gain.shape[1]))
    rows = max(1, _BLOCK_BYTES // (8 * len(gain)))
    for start in range(0, resamples, rows):
        coins = rng.integers(0, 2, (min(rows, resamples - start), len(gain)))
        moved[start : start + rows] = coins @ gain
    return np.concatenate([first.mean(axis=0) + moved, second.mean(axis=0) - moved], axis=1)


def _resampled_means(sample: Float, resamples: int, rng: np.random.Generator) -> Float:
    """Means of `resamples` draws with replacement, (resamples, k), in bounded memory.

    One item fewer is drawn than there are, so that the draws vary as the mean of so few items does (Rao & Wu 1988).
    """
    items, columns = sample.shape
    drawn = max(items - 1, 1)
    rows = max(1, _BLOCK_BYTES // (8 * drawn * max(columns, 1)))
    means = np.empty((resamples, columns))
    for start in range(0, resamples, rows):
        chosen = rng.integers(0, items, (min(rows, resamples - start), drawn))
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
