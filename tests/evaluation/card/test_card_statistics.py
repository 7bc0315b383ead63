"""Intervals and tests against published values, brute force and the properties they are defined by."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.evaluation.card import statistics
from gguf_tools.evaluation.card.statistics import (
    Bootstrap,
    Interval,
    McNemar,
    Paired,
    bootstrap,
    mcnemar,
    paired_difference,
    wilson,
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


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(right: int, total: int, low: float, high: float) -> None:
    interval = wilson(right, total)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(shares, st.floats(0.5, 0.999))
def test_wilson_ends_solve_the_score_equation(share: tuple[int, int], confidence: float) -> None:
    right, total = share
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    interval = wilson(right, total, confidence)
    for end in (interval.low, interval.high):
        assert (right / total - end) ** 2 == pytest.approx(z * z * end * (1 - end) / total, abs=1e-12)


@given(shares)
def test_wilson_properties(share: tuple[int, int]) -> None:
    right, total = share
    interval = wilson(right, total)
    assert 0 <= interval.low <= right / total <= interval.high <= 1
    mirrored = wilson(total - right, total)
    assert mirrored.low == pytest.approx(1 - interval.high)
    assert mirrored.high == pytest.approx(1 - interval.low)
    more = wilson(2 * right, 2 * total)
    assert more.high - more.low < interval.high - interval.low
    wider = wilson(right, total, 0.99)
    assert wider.low <= interval.low
    assert interval.high <= wider.high


def test_wilson_of_nothing_and_nonsense() -> None:
    assert wilson(0, 0) == Interval(0, 1)
    assert wilson(0, 7).low == 0
    assert wilson(7, 7).high == 1
    for right, total in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="; expected 0 to the total of"):
            wilson(right, total)
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, 1.0)


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
    """An interval of 95 %; 10,000 resamples of seed 0."""
    assert wilson(3, 10) == wilson(3, 10, 0.95)
    sample = np.random.default_rng(7).standard_normal((9, 1))
    assert bootstrap([sample], only) == bootstrap([sample], only, 10_000, 0, 0.95)
    assert paired_difference([sample], [-sample], only) == paired_difference([sample], [-sample], only, 10_000, 0, 0.95)


def test_one_resample_will_do() -> None:
    sample = np.array([[1.0], [3.0], [8.0]])
    result = bootstrap([sample], only, resamples=1)
    assert result.interval.low == result.interval.high


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


@given(values, st.integers(0, 5))
def test_equal_models_do_not_differ(column: list[float], seed: int) -> None:
    sample = np.array([column, column]).T
    result = bootstrap([sample, sample], change, resamples=50, seed=seed)
    assert result == Bootstrap(0.0, Interval(0.0, 0.0))


@given(values, st.floats(-5, 5))
def test_a_shift_shifts_the_mean(column: list[float], shift: float) -> None:
    sample = np.array(column)[:, None]
    plain = bootstrap([sample], only, resamples=60, seed=3)
    moved = bootstrap([sample + shift], only, resamples=60, seed=3)
    assert moved.estimate == pytest.approx(plain.estimate + shift, abs=1e-9)
    assert moved.interval.low == pytest.approx(plain.interval.low + shift, abs=1e-9)
    assert moved.interval.high == pytest.approx(plain.interval.high + shift, abs=1e-9)


@given(values, st.integers(0, 3))
def test_sign_and_range(column: list[float], seed: int) -> None:
    sample = np.array(column)[:, None]
    result = bootstrap([sample], only, resamples=60, seed=seed)
    slack = 1e-9
    assert min(column) - slack <= result.interval.low <= result.interval.high <= max(column) + slack
    negated = bootstrap([-sample], only, resamples=60, seed=seed)
    assert negated.interval.low == pytest.approx(-result.interval.high, abs=1e-9)


def test_constant_data() -> None:
    result = bootstrap([np.full((9, 1), 2.5)], only, resamples=99)
    assert result == Bootstrap(2.5, Interval(2.5, 2.5))


@pytest.mark.parametrize("block", [1, 5000, 1 << 24])
def test_the_seed_decides_and_the_memory_does_not(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    sample = np.random.default_rng(1).standard_normal((41, 2))
    expected = bootstrap([sample, sample[:7]], change, resamples=300, seed=4)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block)
    assert bootstrap([sample, sample[:7]], change, resamples=300, seed=4) == expected
    assert bootstrap([sample, sample[:7]], change, resamples=300, seed=5) != expected


def test_against_the_normal_approximation() -> None:
    """For a mean of many items the interval is mean ± 1.96 · standard error."""
    rng = np.random.default_rng(2)
    first = rng.standard_normal(400)
    sample = np.stack([first, first + 0.1 + rng.standard_normal(400)], axis=1)
    gain = sample[:, 1] - sample[:, 0]
    error = gain.std() / math.sqrt(400)
    result = bootstrap([sample], change)
    assert result.estimate == pytest.approx(gain.mean())
    assert result.interval.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.1 * error)
    assert result.interval.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.1 * error)


def test_columns_stay_paired_and_strata_apart() -> None:
    """Items vary far more than the two models do: only a paired draw shows a difference of 1."""
    base = np.random.default_rng(3).standard_normal(50) * 1000
    paired = np.stack([base, base + 1], axis=1)
    assert bootstrap([paired, paired], change, resamples=200).interval.low == pytest.approx(1)
    drawn: list[Float] = []

    def keep(means: list[Float]) -> Float:
        drawn[:] = [part[:, 0] for part in means]
        return means[0][:, 0]

    bootstrap([paired, paired], keep, resamples=2000)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.1


def test_nonsense_is_refused() -> None:
    good = np.ones((3, 1))
    for bad in (np.ones(3), np.ones((0, 1))):
        with pytest.raises(ValueError, match="stratum 1 has shape"):
            bootstrap([good, bad], only)
    with pytest.raises(ValueError, match="expected at least one of each"):
        bootstrap([], only)
    with pytest.raises(ValueError, match="expected at least one of each"):
        bootstrap([good], only, resamples=0)
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for 1 rows"):
        bootstrap([good], lambda means: means[0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap([good], only, confidence=0.0)


@pytest.mark.parametrize("items", [[4.0], [1.0, 5.0], [0.0, 1.0, 10.0], [0.0, 1.0, 10.0, 100.0]])
def test_a_draw_has_one_item_fewer_than_the_sample(items: list[float]) -> None:
    """Every mean of so many items, with replacement, is drawn, and no other."""
    drawn: list[Float] = []

    def keep(means: list[Float]) -> Float:
        drawn.append(means[0][:, 0])
        return drawn[-1]

    bootstrap([np.array(items)[:, None]], keep, resamples=2000)
    size = max(len(items) - 1, 1)
    assert set(drawn[1].round(9)) == {round(sum(some) / size, 9) for some in itertools.product(items, repeat=size)}


def test_samples_without_columns_are_drawn_too() -> None:
    result = bootstrap([np.ones((3, 0))], lambda means: np.full(len(means[0]), 7.0), resamples=10)
    assert result == Bootstrap(7.0, Interval(7.0, 7.0))


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


def test_a_difference_of_every_item_is_shown() -> None:
    base = np.random.default_rng(5).standard_normal((12, 1)) * 100
    found = paired_difference([base], [base + 1], only)
    assert found.shown
    assert found.estimate == pytest.approx(1)
    assert found.p_value < 0.002
    # Four items cannot show anything at the 5 % level, however much they differ: 2 of 16 exchanges are as extreme.
    few = paired_difference([base[:4]], [base[:4] + 1000], only)
    assert not few.shown
    assert few.p_value == pytest.approx(2 / 16, abs=0.02)


@pytest.mark.parametrize("block", [1, 5000, 1 << 24])
def test_exchanges_do_not_depend_on_the_memory(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((30, 2)), rng.standard_normal((30, 2))

    def ratio(means: list[Float]) -> Float:
        return means[0][:, 0] / (10 + means[0][:, 1])

    expected = paired_difference([first], [second], ratio, resamples=200)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block)
    assert paired_difference([first], [second], ratio, resamples=200) == expected


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_every_exchange_is_one_of_the_coins(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The means after the swaps, against one item at a time with the same coins; 7 rows at a time do not divide 50."""
    rng = np.random.default_rng(8)
    first, second = rng.standard_normal((5, 2)), rng.standard_normal((5, 2))
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 8 * 5 * rows)
    found = statistics._exchanged_means(first, second, 50, np.random.Generator(np.random.PCG64(3)))
    coins = np.random.Generator(np.random.PCG64(3)).integers(0, 2, (50, 5)).astype(bool)[:, :, None]
    one, other = np.where(coins, second, first).mean(axis=1), np.where(coins, first, second).mean(axis=1)
    np.testing.assert_allclose(found, np.concatenate([one, other], axis=1), rtol=1e-12, atol=1e-15)


def test_models_with_different_items_are_refused() -> None:
    with pytest.raises(ValueError, match="strata of different shapes"):
        paired_difference([np.ones((3, 1))], [np.ones((4, 1))], only)


def test_what_is_promised_holds_for_models_that_break_now_and_then() -> None:
    """Equal models whose answers break in all respects at once: how often they differ, and how often the truth is within.

    An exact test differs in at most 5 % of the cases. A 95 % interval from 17, 4 and 2 items holds somewhat less often.
    """
    rng = np.random.default_rng(1)
    sizes = (17, 4, 2)

    def drawn() -> list[Float]:
        found = []
        for size in sizes:
            works = rng.random(size) < 0.7
            right = works & (rng.random(size) < 0.8)
            found.append(np.stack([right, works, np.where(works, 1, 50)], axis=1).astype(np.float64))
        return found

    def score(means: list[Float]) -> Float:
        answers, probes, texts = means
        repeated = sum(size * part[:, 2] for size, part in zip(sizes, means, strict=True)) / (60 * sum(sizes))
        result: Float = 40 * answers[:, 0] + 10 * answers[:, 1] + 10 * probes[:, 1] + 15 * texts[:, 0] - 10 * repeated
        return result

    truth = 55 * 0.7 * 0.8 + 20 * 0.7 - 10 * (0.7 + 0.3 * 50) / 60
    runs = 200
    found = [paired_difference(drawn(), drawn(), score, resamples=400, seed=seed) for seed in range(runs)]
    assert sum(result.shown for result in found) / runs <= 0.08
    intervals = [bootstrap(drawn(), score, resamples=400, seed=seed).interval for seed in range(runs)]
    assert sum(interval.low <= truth <= interval.high for interval in intervals) / runs >= 0.86
