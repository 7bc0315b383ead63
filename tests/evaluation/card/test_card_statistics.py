"""Intervals and tests against published values, brute force and the properties they are defined by."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from gguf_tools.evaluation.card import statistics
from gguf_tools.evaluation.card.statistics import (
    Bootstrap,
    Interval,
    McNemar,
    Paired,
    apart,
    bootstrap,
    clopper_pearson,
    least_flips,
    least_p,
    mcnemar,
    paired_difference,
    reach,
)

Float = npt.NDArray[np.float64]

shares = st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30)
values = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


def only(means: list[Float]) -> Float:
    return means[0][:, 0]


def change(means: list[Float]) -> Float:
    """Mean over strata of second − first."""
    result: Float = np.mean([part[:, 1] - part[:, 0] for part in means], axis=0)
    return result


def ends(sample: Float, low: float = 0.0, high: float = 1.0) -> Float:
    """Two items with the least and the greatest value in every column."""
    return np.stack([np.full(sample.shape[1], low), np.full(sample.shape[1], high)])


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 5
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_clopper_pearson_published(right: int, total: int, low: float, high: float) -> None:
    interval = clopper_pearson(right, total)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(shares, st.floats(0.5, 0.999))
def test_clopper_pearson_is_of_the_beta_distribution(share: tuple[int, int], confidence: float) -> None:
    right, total = share
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, right, total - right + 1) if right else 0.0
    high = beta.ppf(1 - tail, right + 1, total - right) if right < total else 1.0
    interval = clopper_pearson(right, total, confidence)
    assert interval.low == pytest.approx(low, abs=1e-11)
    assert interval.high == pytest.approx(high, abs=1e-11)


def test_clopper_pearson_of_thousands_and_of_all() -> None:
    """Neither a factorial nor a power overflows, and both ends are reached."""
    interval = clopper_pearson(9000, 14042)
    assert interval.low == pytest.approx(float(beta.ppf(0.025, 9000, 5043)), abs=1e-9)
    assert interval.high == pytest.approx(float(beta.ppf(0.975, 9001, 5042)), abs=1e-9)
    assert clopper_pearson(0, 3000).low == 0
    assert clopper_pearson(3000, 3000).high == 1
    assert clopper_pearson(3000, 3000).low == pytest.approx(0.025 ** (1 / 3000), abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 4, 17])
def test_clopper_pearson_holds_every_share(total: int) -> None:
    """Its probability to hold the true share, computed exactly, for shares at and between the ends of intervals too."""
    found = [clopper_pearson(right, total) for right in range(total + 1)]
    ends = [end + shift for interval in found for end in interval.as_list() for shift in (-1e-9, 1e-9)]
    for share in (*np.linspace(0, 1, 201), *(end for end in ends if 0 <= end <= 1)):
        held = [i for i, interval in enumerate(found) if interval.low <= share <= interval.high]
        assert binom.pmf(held, total, share).sum() >= 0.95 - 1e-9


def test_clopper_pearson_of_nothing_and_nonsense() -> None:
    assert clopper_pearson(0, 0) == Interval(0, 1)
    for right, total in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="; expected 0 to the total of"):
            clopper_pearson(right, total)
    for confidence in (0.0, 1.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            clopper_pearson(1, 2, confidence)


@given(st.integers(0, 7), st.integers(0, 5))
def test_mcnemar_against_all_outcomes(first_only: int, second_only: int) -> None:
    total = first_only + second_only
    observed = abs(first_only - second_only)
    outcomes = itertools.product((-1, 1), repeat=total)
    expected = sum(abs(sum(signs)) >= observed for signs in outcomes) / 2**total
    first = [True] * first_only + [False] * second_only
    result = mcnemar(first, [not x for x in first])
    assert result.p_value == pytest.approx(expected, abs=1e-15)
    assert (result.first_only, result.second_only) == (first_only, second_only)


@given(pairs, st.lists(st.booleans(), max_size=10), st.randoms())
def test_mcnemar_properties(items: list[tuple[bool, bool]], same: list[bool], random: object) -> None:
    first, second = [a for a, _ in items], [b for _, b in items]
    result, swapped = mcnemar(first, second), mcnemar(second, first)
    assert (swapped.p_value, swapped.difference) == (result.p_value, -result.difference)
    assert (swapped.first_only, swapped.second_only) == (result.second_only, result.first_only)
    assert mcnemar(first + same, second + same).p_value == result.p_value
    order = sorted(items)
    assert mcnemar([a for a, _ in order], [b for _, b in order]) == result
    assert 0 < result.p_value <= 1
    if items:
        assert result.difference == pytest.approx((sum(second) - sum(first)) / len(items))


def test_a_p_value_of_five_percent_is_not_below_it() -> None:
    assert (McNemar(0.1, 1, 2, 0.05).shown, McNemar(0.1, 1, 2, 0.0499).shown) == (False, True)
    interval = Interval(0.0, 1.0)
    assert (Paired(0.1, interval, 0.05).shown, Paired(0.1, interval, 0.0499).shown) == (False, True)


def test_what_is_not_given() -> None:
    """An interval of 95 %; 10,000 resamples of seed 0; differences as far apart as those seen."""
    assert clopper_pearson(3, 10) == clopper_pearson(3, 10, 0.95)
    sample = np.random.default_rng(7).standard_normal((19, 1))
    both = ends(sample, -3, 3)
    assert bootstrap([sample], only, [both]) == bootstrap([sample], only, [both], 10_000, 0, 0.95)
    expected = paired_difference([sample], [-sample], only, [apart(sample, -sample)], 10_000, 0, 0.95)
    assert paired_difference([sample], [-sample], only) == expected


def test_one_resample_will_do() -> None:
    sample = np.array([[1.0], [3.0], [8.0]])
    result = bootstrap([sample], only, [ends(sample, 0, 9)], resamples=1)
    drawn = np.random.Generator(np.random.PCG64(0)).standard_exponential((1, 4))
    low, high = (float((drawn @ np.array([1, 3, 8, end])).item() / drawn.sum()) for end in (0, 9))
    assert (result.interval.low, result.interval.high) == pytest.approx((min(low, 4), max(high, 4)), rel=1e-14)


def test_mcnemar_examples() -> None:
    nothing = mcnemar([True, False], [True, False])
    assert (nothing.p_value, nothing.difference, nothing.shown) == (1, 0, False)
    assert mcnemar([], []).p_value == 1
    assert not mcnemar([False] * 5, [True] * 5).shown  # 2 / 32
    six = mcnemar([False] * 6, [True] * 6)
    assert six.shown
    assert (six.p_value, six.difference) == (2 / 64, 1)
    many = mcnemar([True] * 3000 + [False] * 2800, [False] * 3000 + [True] * 2800)
    normal = 2 * NormalDist().cdf((2800.5 - 2900) / math.sqrt(5800 / 4))
    assert many.p_value == pytest.approx(normal, rel=1e-2)
    with pytest.raises(ValueError, match="1 items and the second 2"):
        mcnemar([True], [True, False])


@given(st.integers(1, 40).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
@settings(max_examples=25)
def test_the_interval_of_a_share_is_clopper_and_pearsons(share: tuple[int, int]) -> None:
    right, total = share
    sample = column([True] * right + [False] * (total - right))
    drawn, exact = bootstrap([sample], only, [ends(sample)]).interval, clopper_pearson(right, total)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.02)
    assert (drawn.low == 0) == (right == 0)
    assert (drawn.high == 1) == (right == total)


@given(values, st.floats(-5, 5))
def test_a_shift_shifts_the_mean(column: list[float], shift: float) -> None:
    sample = np.array(column)[:, None]
    plain = bootstrap([sample], only, [ends(sample, -11, 12)], resamples=60, seed=3)
    moved = bootstrap([sample + shift], only, [ends(sample, -11 + shift, 12 + shift)], resamples=60, seed=3)
    assert moved.estimate == pytest.approx(plain.estimate + shift, abs=1e-9)
    assert moved.interval.low == pytest.approx(plain.interval.low + shift, abs=1e-9)
    assert moved.interval.high == pytest.approx(plain.interval.high + shift, abs=1e-9)


@given(values, st.integers(0, 3))
def test_sign_and_range(column: list[float], seed: int) -> None:
    """The interval lies between the extremes, has a width, and does not depend on which of them is the first."""
    sample = np.array(column)[:, None]
    result = bootstrap([sample], only, [ends(sample, -12, 11)], resamples=60, seed=seed)
    assert -12 <= result.interval.low < result.interval.high <= 11
    assert result.interval.low <= result.estimate <= result.interval.high
    assert bootstrap([sample], only, [ends(sample, 11, -12)], resamples=60, seed=seed) == result
    negated = bootstrap([-sample], only, [-ends(sample, -12, 11)], resamples=60, seed=seed)
    assert negated.interval.low == pytest.approx(-result.interval.high, abs=1e-9)
    assert negated.interval.high == pytest.approx(-result.interval.low, abs=1e-9)


def test_constant_data_has_a_width() -> None:
    result = bootstrap([np.full((17, 1), 1.0)], only, [np.array([[0.0], [1.0]])])
    assert (result.estimate, result.interval.high) == (1, 1)
    assert result.interval.low == pytest.approx(0.025 ** (1 / 17), abs=0.01)


@pytest.mark.parametrize("block", [1, 5000, 1 << 24])
def test_the_seed_decides_and_the_memory_does_not(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    sample = np.random.default_rng(1).standard_normal((41, 2))
    both = [ends(sample, -3, 3)] * 2
    expected = bootstrap([sample, sample[:7]], change, both, resamples=300, seed=4)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block)
    found = bootstrap([sample, sample[:7]], change, both, resamples=300, seed=4).interval
    assert (found.low, found.high) == pytest.approx((expected.interval.low, expected.interval.high), rel=1e-12)
    assert bootstrap([sample, sample[:7]], change, both, resamples=300, seed=5) != expected


def test_against_the_normal_approximation() -> None:
    """For a mean of many items the interval is mean ± 1.96 · standard error."""
    rng = np.random.default_rng(2)
    first = rng.standard_normal(4000)
    sample = np.stack([first, first + 0.1 + rng.standard_normal(4000)], axis=1)
    gain = sample[:, 1] - sample[:, 0]
    error = gain.std() / math.sqrt(4000)
    result = bootstrap([sample], change, [apart(sample[:, :1], sample[:, 1:])], resamples=4000)
    assert result.estimate == pytest.approx(gain.mean())
    assert result.interval.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.15 * error)
    assert result.interval.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.15 * error)


def test_columns_stay_paired_and_strata_apart() -> None:
    """Items vary far more than the two models do: only a paired draw shows a difference of 1."""
    base = np.random.default_rng(3).standard_normal(50) * 1000
    paired = np.stack([base, base + 1], axis=1)
    both = [np.array([[0.0, 1.0], [5.0, 6.0]])] * 2
    assert bootstrap([paired, paired], change, both, resamples=200).interval.low == pytest.approx(1)
    drawn: list[Float] = []

    def keep(means: list[Float]) -> Float:
        drawn[:] = [part[:, 0] for part in means]
        return means[0][:, 0]

    bootstrap([paired, paired], keep, both, resamples=2000)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.1


def test_nonsense_is_refused() -> None:
    good = np.ones((3, 1))
    both = ends(good)
    for bad in (np.ones(3), np.ones((0, 1))):
        with pytest.raises(ValueError, match="stratum 1 has shape"):
            bootstrap([good, bad], only, [both, both])
    with pytest.raises(ValueError, match="expected at least one of each"):
        bootstrap([], only, [])
    with pytest.raises(ValueError, match="expected at least one of each"):
        bootstrap([good], only, [both], resamples=0)
    for wrong in ([], [both, both], [both[:1]], [np.ones((2, 2))]):
        with pytest.raises(ValueError, match="the extremes have other shapes"):
            bootstrap([good], only, wrong)
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for 1 rows"):
        bootstrap([good], lambda means: means[0], [both])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap([good], only, [both], confidence=0.0)


@pytest.mark.parametrize("items", [1, 2, 5, 40])
def test_the_weights_are_of_the_flat_dirichlet_distribution(items: int) -> None:
    """The mean's first two moments under weights Dirichlet(1, …, 1) over the items and one more (Rubin 1981)."""
    rng = np.random.default_rng(items)
    sample = rng.standard_normal((items, 1))
    drawn: list[Float] = []

    def keep(means: list[Float]) -> Float:
        drawn.append(means[0][:, 0])
        return drawn[-1]

    bootstrap([sample], keep, [ends(sample, -4, 4)], resamples=20_000)
    for found, extreme in zip(drawn[1:], (-4, 4), strict=True):
        every = np.append(sample, extreme)
        error = every.std() / math.sqrt(items + 2)
        assert found.mean() == pytest.approx(every.mean(), abs=4 * error / math.sqrt(20_000))
        assert found.std() == pytest.approx(error, rel=0.03)


def test_samples_without_columns_are_drawn_too() -> None:
    result = bootstrap([np.ones((3, 0))], lambda means: np.full(len(means[0]), 7.0), [np.ones((2, 0))], resamples=10)
    assert result == Bootstrap(7.0, Interval(7.0, 7.0))


def test_reach_is_one_step_beyond() -> None:
    assert reach(np.array([3.0, 1.0, 2.0])) == (0.0, 4.0)
    assert reach(np.array([1.0, 9.0])) == (-7.0, 17.0)
    assert reach(np.array([5.0])) == (5.0, 5.0)
    assert reach(np.array([5.0, 5.0, 5.0])) == (5.0, 5.0)


def test_two_items_lie_apart_by_the_reach_of_the_differences() -> None:
    first, second = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]]), np.array([[2.0, 4.0], [3.0, 5.0], [7.0, 5.0]])
    # Differences 1, 0, 2 and -1, 0, 0: from -1 to 3, and from -1.5 to 0.5.
    np.testing.assert_allclose(apart(first, second), [[3, 5, 2, 3.5], [3, 5, 6, 5.5]])
    assert apart(np.ones((4, 0)), np.ones((4, 0))).shape == (2, 0)


# Paired differences


def column(items: list[bool]) -> Float:
    return np.array(items, dtype=np.float64)[:, None]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_a_share_is_tested_as_mcnemar_tests_it(items: list[tuple[bool, bool]]) -> None:
    """For one share the randomization test is McNemar's, but for the sampling of the exchanges."""
    first, second = ([pair[i] for pair in items] for i in (0, 1))
    exact = mcnemar(first, second)
    found = paired_difference([column(first)], [column(second)], only, resamples=4000)
    assert found.estimate == pytest.approx(exact.difference, abs=1e-12)
    error = math.sqrt(max(exact.p_value * (1 - exact.p_value), 1e-4) / 4000)
    assert found.p_value == pytest.approx(exact.p_value, abs=6 * error + 1 / 4000)


@given(values, st.integers(0, 3))
def test_a_difference_turns_round_with_the_models(numbers: list[float], seed: int) -> None:
    first = np.array(numbers)[:, None]
    second = np.roll(first, 1, axis=0)
    there = paired_difference([first], [second], only, resamples=99, seed=seed)
    back = paired_difference([second], [first], only, resamples=99, seed=seed)
    assert back.estimate == pytest.approx(-there.estimate, abs=1e-9)
    assert back.p_value == pytest.approx(there.p_value)
    assert paired_difference([first], [first], only, resamples=99) == Paired(0.0, Interval(0.0, 0.0), 1.0)


@given(st.integers(0, 9), st.integers(0, 7), st.integers(0, 5))
@settings(max_examples=25)
def test_the_interval_of_a_difference_in_shares_excludes_0_where_mcnemar_does(lost: int, won: int, same: int) -> None:
    """With one more item that only one model has right, both say the same but for the sampling of the interval."""
    first = column([True] * lost + [False] * won + [True] * (same + 1))
    second = column([False] * lost + [True] * won + [True] * (same + 1))
    both = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = paired_difference([first], [second], only, [both])
    exact = mcnemar([bool(x) for x in first], [bool(x) for x in second])
    assert found.interval.low < found.interval.high
    if abs(exact.p_value - 0.05) > 0.008:
        assert (found.interval.low <= 0 <= found.interval.high) == (exact.p_value >= 0.05)


def test_a_difference_of_every_item_is_shown() -> None:
    base = np.random.default_rng(5).standard_normal((12, 1)) * 100
    found = paired_difference([base], [base + 1], only)
    assert found.shown
    assert found.estimate == pytest.approx(1)
    assert found.p_value == 2 / 2**12
    # Four items cannot show anything at the 5 % level, however much they differ: 2 of 16 exchanges are as extreme.
    few = paired_difference([base[:4]], [base[:4] + 1000], only)
    assert not few.shown
    assert few.p_value == 2 / 16


def test_up_to_16_items_all_exchanges_are_tried_and_beyond_some() -> None:
    base = np.random.default_rng(9).standard_normal((17, 1))
    assert paired_difference([base[:16]], [base[:16] + 1], only, resamples=9).p_value == 2 / 2**16
    strata = [base[:9], base[9:16]]
    assert paired_difference(strata, [part + 1 for part in strata], both_strata, resamples=9).p_value == 2 / 2**16
    assert paired_difference([base], [base + 1], only, resamples=9).p_value == 1 / 10
    strata = [base[:9], base[9:]]
    assert paired_difference(strata, [part + 1 for part in strata], both_strata, resamples=9).p_value == 1 / 10


def both_strata(means: list[Float]) -> Float:
    result: Float = means[0][:, 0] + means[1][:, 0]
    return result


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4), (5,)])
def test_every_choice_of_items_is_exchanged_once(sizes: tuple[int, ...]) -> None:
    """Against brute force, one item at a time."""
    rng = np.random.default_rng(8)
    first = [rng.standard_normal((size, 2)) for size in sizes]
    second = [rng.standard_normal((size, 2)) for size in sizes]
    found = np.concatenate(statistics._all_exchanged(first, second), axis=1)
    expected = []
    for coins in itertools.product((False, True), repeat=sum(sizes)):
        row, start = [], 0
        for a, b in zip(first, second, strict=True):
            swapped = np.array(coins[start : start + len(a)])[:, None]
            row += [np.where(swapped, b, a).mean(axis=0), np.where(swapped, a, b).mean(axis=0)]
            start += len(a)
        expected.append(np.concatenate(row))
    order = [np.lexsort(np.round(table, 9).T) for table in (found, np.array(expected))]
    np.testing.assert_allclose(found[order[0]], np.array(expected)[order[1]], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("block", [1, 5000, 1 << 24])
def test_exchanges_do_not_depend_on_the_memory(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((30, 2)), rng.standard_normal((30, 2))

    def ratio(means: list[Float]) -> Float:
        return means[0][:, 0] / (10 + means[0][:, 1])

    expected = paired_difference([first], [second], ratio, resamples=200)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block)
    assert paired_difference([first], [second], ratio, resamples=200).p_value == expected.p_value


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_every_exchange_is_one_of_the_coins(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The means after the swaps, against one item at a time with the same coins; 7 rows at a time do not divide 50."""
    rng = np.random.default_rng(8)
    first, second = rng.standard_normal((5, 2)), rng.standard_normal((5, 2))
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 8 * 5 * rows)
    (found,) = statistics._some_exchanged([first], [second], 50, 3)
    coins = np.random.Generator(np.random.PCG64(3)).integers(0, 2, (50, 5)).astype(bool)[:, :, None]
    one, other = np.where(coins, second, first).mean(axis=1), np.where(coins, first, second).mean(axis=1)
    np.testing.assert_allclose(found, np.concatenate([one, other], axis=1), rtol=1e-12, atol=1e-15)


def test_models_with_different_items_are_refused() -> None:
    with pytest.raises(ValueError, match="strata of different shapes"):
        paired_difference([np.ones((3, 1))], [np.ones((4, 1))], only)


SIZES = (17, 4, 2)
"""Answers, answers in the other mode, and texts to continue, of one set."""


def broken_now_and_then(rng: np.random.Generator) -> list[Float]:
    """Items of a model whose texts break in all respects at once, three in ten: right, works, repeated n-grams of 60."""
    found = []
    for size in SIZES:
        works = rng.random(size) < 0.7
        right = works & (rng.random(size) < 0.8)
        found.append(np.stack([right, works, np.where(works, 1, 50)], axis=1).astype(np.float64))
    return found


def test_equal_models_differ_in_one_of_twenty_cases_at_most() -> None:
    rng = np.random.default_rng(1)

    def score(means: list[Float]) -> Float:
        answers, probes, texts = means
        repeated = sum(size * part[:, 2] for size, part in zip(SIZES, means, strict=True)) / (60 * sum(SIZES))
        result: Float = 40 * answers[:, 0] + 10 * answers[:, 1] + 10 * probes[:, 1] + 15 * texts[:, 0] - 10 * repeated
        return result

    runs = 200
    pairs = [(broken_now_and_then(rng), broken_now_and_then(rng)) for _ in range(runs)]
    found = [paired_difference(*pair, score, resamples=400, seed=seed) for seed, pair in enumerate(pairs)]
    assert sum(result.shown for result in found) / runs <= 0.08


# What so many items can show


def test_the_least_p_is_that_of_a_difference_in_all_items() -> None:
    assert [least_p(items) for items in (0, 1, 2, 8)] == [1, 1, 0.5, 2 / 2**8]
    for items in (1, 3, 6, 20):
        assert least_p(items) == mcnemar([False] * items, [True] * items).p_value
    rng = np.random.default_rng(4)
    for items in (3, 16, 17):
        base = rng.standard_normal((items, 1))
        assert paired_difference([base], [base + 1], only, resamples=999).p_value == least_p(items, 999)
    assert least_p(8, 999) == 2 / 2**8
    assert least_p(17, 10**9) == 2 / 2**17, "so many would be tried that all are"


def test_six_answers_must_change_one_way() -> None:
    assert least_flips() == 6
    for significance in (0.05, 0.05 / 250, 0.5, 2 / 2**9, 1.0):
        flips = least_flips(significance)
        assert least_p(flips) < significance or flips == 1
        assert flips == 1 or least_p(flips - 1) >= significance
