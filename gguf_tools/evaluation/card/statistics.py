"""Confidence intervals and significance tests on per-item results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Swaps = npt.NDArray[np.integer[Any]]

SIGNIFICANCE = 0.05
"""A difference with a p-value below this is significant."""

EXACT_ITEMS = 16
"""Up to this many items all permutations are tried: 65,536."""

RESAMPLES = 10_000
"""Draws of a bootstrap, and random permutations of a test."""

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
    """A statistic of the original items, and its bootstrap interval."""

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


def clopper_pearson(right: int, total: int, confidence: float = 0.95) -> Interval:
    """The exact interval of the proportion `right` / `total` (Clopper & Pearson 1934); (0, 1) for a total of 0.

    It holds the true share with at least this confidence, whatever the share is; Wilson's interval of 17 items does so in 84% of
    the cases at a share of 0.99. Raises ValueError if `right` is not in 0…total or `confidence` not in (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= right <= total:
        raise ValueError(f"right is {right}; expected 0 to the total of {total}")
    tail = (1 - confidence) / 2
    return Interval(_least_share(right, total, tail), 1.0 - _least_share(total - right, total, tail))


def _least_share(right: int, total: int, tail: float) -> float:
    """The share of which `right` or more of `total` items are right with the probability `tail`; 0 for no right item."""
    if not right:
        return 0.0
    counts = np.arange(right, total + 1)
    ways = np.array([math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1) for n in counts])
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        probability = np.exp(ways + counts * math.log(share) + (total - counts) * math.log1p(-share)).sum()
        low, high = (share, high) if probability < tail else (low, share)
    return low


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


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979), in the order given; each is at most 1.

    With n of them, the k-th smallest is multiplied by n - k + 1, and none is smaller than one before it.
    """
    count = len(p_values)
    corrected = [0.0] * count
    largest = 0.0
    for place, index in enumerate(sorted(range(count), key=lambda n: p_values[n])):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def bootstrap(
    samples: Sequence[Float],
    combine: Callable[[list[Float]], Float],
    extremes: Sequence[Float],
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Bootstrap:
    """A statistic of means, and its interval by the Bayesian bootstrap (Rubin 1981) with one more item at either extreme.

    `samples` has one array (items, k) per stratum: the items of a stratum get weights drawn from the flat Dirichlet distribution,
    all k columns of an item together, so that columns of two models stay paired. `extremes` has one array (2, k) per stratum,
    two items that were not seen, such as the worst and the best possible: the lower bound is drawn with one of them added to
    each stratum, the upper with the other. The interval thus has a width even if all items agree, and that of a share is
    Clopper and Pearson's (the bound of Gaffke 2005 for means of bounded values). `combine` maps one array of means (r, k) per
    stratum to r statistics, shape (r,). The same seed gives the same result.

    Raises ValueError if a stratum is not (items, k) with at least one item, if there are no strata or no resamples, if the
    extremes have another shape, if `combine` returns another, or if `confidence` is not in (0, 1).
    """
    _check_confidence(confidence)
    if resamples < 1 or not samples:
        raise ValueError(f"{resamples} resamples of {len(samples)} strata; expected at least one of each")
    for number, sample in enumerate(samples):
        if sample.ndim != 2 or not len(sample):
            raise ValueError(f"stratum {number} has shape {sample.shape}; expected (items, k) with at least one item")
    if [ends.shape for ends in extremes] != [(2, sample.shape[1]) for sample in samples]:
        raise ValueError("the extremes have other shapes than the strata; expected (2, k) for each of (items, k)")
    estimate = float(_combined(combine, [sample.mean(axis=0, keepdims=True) for sample in samples], 1)[0])
    ends = [estimate]  # what all items agree on is reached up to rounding only
    for side in (0, 1):
        rng = np.random.Generator(np.random.PCG64(seed))
        items = [
            np.concatenate([sample, both[side : side + 1]]) for sample, both in zip(samples, extremes, strict=True)
        ]
        drawn = _combined(combine, [_weighted_means(sample, resamples, rng) for sample in items], resamples)
        ends += np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Bootstrap(estimate, Interval(min(ends), max(ends)))


def reach(values: Float) -> tuple[float, float]:
    """The least and the largest value that one more item may have: as far beyond those seen as they lie apart on average.

    Of a uniform distribution these are unbiased estimates of its ends. Both are the value itself if all are equal.
    """
    low, high = float(values.min()), float(values.max())
    step = (high - low) / max(len(values) - 1, 1)
    return low - step, high + step


def paired_difference(
    first: Sequence[Float],
    second: Sequence[Float],
    combine: Callable[[list[Float]], Float],
    extremes: Sequence[Float] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Paired:
    """The difference of two models in a statistic of means: bootstrap interval and permutation test.

    `first` and `second` have one array (items, k) per stratum, of the same items; `combine` as in `bootstrap`, for one model.
    `extremes` are those of `bootstrap`, with the columns of both models, shape (2, 2k); by default the two items by which the
    models would differ in every column as `reach` says.

    The test swaps the two models' results of each item (Fisher's randomization test). Up to `EXACT_ITEMS` items all 2^items
    permutations are tried, and p is the share with at least the observed difference; beyond, `resamples` random ones, with 1
    added to count and total (Davison & Hinkley 1997, 4.2.5).

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
    if extremes is None:
        extremes = [apart(a, b) for a, b in zip(first, second, strict=True)]
    found = bootstrap(both, change, extremes, resamples, seed, confidence)
    items = sum(map(len, first))
    exact = items <= EXACT_ITEMS
    exchanged = change(_all_exchanged(first, second) if exact else _some_exchanged(first, second, resamples, seed))
    # Permutations with mathematically equal differences may differ by rounding.
    extreme = int((np.abs(exchanged) >= abs(found.estimate) * (1 - 1e-9) - 1e-12).sum())
    p_value = extreme / len(exchanged) if exact else (1 + extreme) / (1 + resamples)
    return Paired(found.estimate, found.interval, p_value)


def apart(first: Float, second: Float) -> Float:
    """Two items, (2, 2k), on which two models with results (items, k) would differ by the `reach` of their differences."""
    ends = np.array([reach(column) for column in (second - first).T]).reshape(first.shape[1], 2).T
    middle = np.broadcast_to(first.mean(axis=0), ends.shape)
    return np.concatenate([middle, middle + ends], axis=1)


def least_p(items: int, resamples: int | None = None) -> float:
    """The smallest two-sided p-value of a paired test on this many items: that of a difference in all of them, one way.

    With `resamples`, that of `paired_difference`, which tries only so many permutations beyond `EXACT_ITEMS` items.
    """
    smallest = 2.0 ** (1 - items) if items else 1.0
    if resamples is None or items <= EXACT_ITEMS:
        return smallest
    return max(smallest, 1 / (1 + resamples))


def least_flips(significance: float = SIGNIFICANCE) -> int:
    """The fewest items that two models must answer differently, all one way, for McNemar's p to be below `significance`."""
    flips = 1
    while _sign_test(0, flips) >= significance:
        flips += 1
    return flips


def _all_exchanged(first: Sequence[Float], second: Sequence[Float]) -> list[Float]:
    """Means of both models by stratum, (2^items, 2k) each, for every choice of items whose two results are swapped."""
    items = sum(map(len, first))
    swaps = (np.arange(1 << items)[:, None] >> np.arange(items)) & 1
    parts = np.split(swaps, np.cumsum([len(sample) for sample in first])[:-1], axis=1)
    return [_exchanged_means(a, b, part) for a, b, part in zip(first, second, parts, strict=True)]


def _some_exchanged(first: Sequence[Float], second: Sequence[Float], resamples: int, seed: int) -> list[Float]:
    """Means of both models by stratum, (resamples, 2k) each, after random swaps, drawn in bounded memory."""
    rng = np.random.Generator(np.random.PCG64(seed))
    found = []
    for a, b in zip(first, second, strict=True):
        rows = max(1, _BLOCK_BYTES // (8 * len(a)))
        sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
        found.append(np.concatenate([_exchanged_means(a, b, rng.integers(0, 2, (size, len(a)))) for size in sizes]))
    return found


def _exchanged_means(first: Float, second: Float, swaps: Swaps) -> Float:
    """Means of both models, shape (permutations, 2k), after the swaps (permutations, items) of the two results of an item."""
    moved = swaps @ ((second - first) / len(first))
    return np.concatenate([first.mean(axis=0) + moved, second.mean(axis=0) - moved], axis=1)


def _weighted_means(sample: Float, resamples: int, rng: np.random.Generator) -> Float:
    """Means under `resamples` draws of weights from the flat Dirichlet distribution, shape (resamples, k), in bounded memory."""
    rows = max(1, _BLOCK_BYTES // (8 * len(sample)))
    means = np.empty((resamples, sample.shape[1]))
    for start in range(0, resamples, rows):
        weights = rng.standard_exponential((min(rows, resamples - start), len(sample)))
        means[start : start + rows] = (weights @ sample) / weights.sum(axis=1, keepdims=True)
    return np.clip(means, sample.min(axis=0), sample.max(axis=0))  # which rounding may pass


def _combined(combine: Callable[[list[Float]], Float], means: list[Float], count: int) -> Float:
    result = combine(means)
    if result.shape != (count,):
        raise ValueError(f"combine returned shape {result.shape} for {count} rows of means; expected ({count},)")
    return result


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a number between 0 and 1")
