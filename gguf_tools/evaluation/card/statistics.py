"""Confidence intervals and significance tests on per-item results."""

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
"""A difference with a p-value below this is significant."""

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def as_list(self) -> list[float]:
        """[low, high], for JSON."""
        return [self.low, self.high]


@dataclass(frozen=True)
class McNemar:
    """Comparison of two models on the same items (McNemar's exact test).

    `difference`: share of items that the second has right − share that the first has right.
    `first_only`, `second_only`: number of items that only the first, or only the second, has right.
    `p_value`: two-sided and exact, for the null hypothesis that both kinds of item are equally likely.
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
    """A statistic of the original items, and its bootstrap percentile interval."""

    estimate: float
    interval: Interval


@dataclass(frozen=True)
class Paired:
    """The second model's statistic minus the first's, on the same items.

    `interval`: by the bootstrap. `p_value`: two-sided, by a permutation test of the null hypothesis that the two results of
    an item are exchangeable.
    """

    estimate: float
    interval: Interval
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the models differ by more than chance, at the 5 % level."""
        return self.p_value < SIGNIFICANCE


def wilson(right: int, total: int, confidence: float = 0.95) -> Interval:
    """The score interval of the proportion `right` / `total` (Wilson 1927); (0, 1) for a total of 0.

    Raises ValueError if `right` is not in 0…total or `confidence` not in (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= right <= total:
        raise ValueError(f"right is {right}; expected 0 to the total of {total}")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    # The bounds are exactly 0 and 1 in these cases, which rounding errors would miss.
    low = 0.0 if right == 0 else centre - half
    return Interval(low, 1.0 if right == total else centre + half)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test (1947): a two-sided binomial test on the items that only one of the two has right.

    The p-value is 1 if there is no such item. Raises ValueError if the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"the first has {len(first)} items and the second {len(second)}; expected the same items")
    first_only = sum(1 for a, b in zip(first, second, strict=True) if a and not b)
    second_only = sum(1 for a, b in zip(first, second, strict=True) if b and not a)
    difference = (second_only - first_only) / len(first) if len(first) else 0.0
    return McNemar(difference, first_only, second_only, _sign_test(first_only, second_only))


def _sign_test(one: int, other: int) -> float:
    """Probability that `one + other` fair coin tosses split at least this unevenly; computed exactly with integers."""
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
    """The stratified bootstrap of a statistic of means (Efron & Tibshirani 1993), with a percentile interval.

    `samples` has one array (items, k) per stratum: items are drawn with replacement within a stratum, all k columns of an item
    together, so that columns of two models stay paired. `combine` maps one array of means (r, k) per stratum to r statistics,
    shape (r,). The same seed gives the same result.

    Raises ValueError if a stratum is not (items, k) with at least one item, if there are no strata or no resamples, if
    `combine` returns another shape, or if `confidence` is not in (0, 1).
    """
    _check_confidence(confidence)
    if resamples < 1 or not samples:
        raise ValueError(f"{resamples} resamples of {len(samples)} strata; expected at least one of each")
    for number, sample in enumerate(samples):
        if sample.ndim != 2 or not len(sample):
            raise ValueError(f"stratum {number} has shape {sample.shape}; expected (items, k) with at least one item")
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

    `first` and `second` have one array (items, k) per stratum, of the same items; `combine` as in `bootstrap`, for one model.
    The test swaps the two models' results of each item at random (Fisher's randomization test); p is the share of such
    permutations with at least the observed difference, with 1 added to count and total (Davison & Hinkley 1997, 4.2.5).
    With few items it is as conservative as McNemar's test, which a percentile interval is not.

    Raises ValueError as `bootstrap`, and if the two models' strata differ in shape.
    """
    if [a.shape for a in first] != [b.shape for b in second]:
        raise ValueError("the two models have strata of different shapes; expected the same items")
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
    # Permutations with mathematically equal differences may differ by rounding.
    extreme = int((np.abs(exchanged) >= abs(found.estimate) * (1 - 1e-9) - 1e-12).sum())
    return Paired(found.estimate, found.interval, (1 + extreme) / (1 + resamples))


def _exchanged_means(first: Float, second: Float, resamples: int, rng: np.random.Generator) -> Float:
    """Means of both models, shape (resamples, 2k), after random swaps of the two results of each item."""
    gain = (second - first) / len(first)
    moved = np.empty((resamples, gain.shape[1]))
    rows = max(1, _BLOCK_BYTES // (8 * len(gain)))
    for start in range(0, resamples, rows):
        coins = rng.integers(0, 2, (min(rows, resamples - start), len(gain)))
        moved[start : start + rows] = coins @ gain
    return np.concatenate([first.mean(axis=0) + moved, second.mean(axis=0) - moved], axis=1)


def _resampled_means(sample: Float, resamples: int, rng: np.random.Generator) -> Float:
    """Means of `resamples` draws with replacement, shape (resamples, k), in bounded memory.

    Each draw has one item fewer than the sample, which makes the variance of the draws' means unbiased (Rao & Wu 1988).
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
        raise ValueError(f"combine returned shape {result.shape} for {count} rows of means; expected ({count},)")
    return result


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1")
