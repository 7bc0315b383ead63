"""Repetition on token ids, against definitions spelt out one token at a time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.evaluation.card.repetition import Loop, ends_in_loop, longest_loop, repeated_ngrams


def repeated_share(tokens: list[int], n: int) -> float:
    """The share of the n-grams that stood there before, 0 where there are none."""
    repeated, total = repeated_ngrams(tokens, n)
    assert 0 <= repeated <= total
    return repeated / max(total, 1)


small = st.lists(st.integers(0, 2), max_size=24)
texts = st.lists(st.integers(0, 1 << 40), max_size=40)


def all_loops(tokens: list[int], min_repeats: int) -> list[Loop]:
    """Every stretch with a period that stands often enough, in the order in which ties are resolved."""
    found = []
    for period in range(1, len(tokens) + 1):
        for start in range(len(tokens)):
            for end in range(start + min_repeats * period, len(tokens) + 1):
                part = tokens[start:end]
                if all(part[i] == part[i % period] for i in range(len(part))):
                    found.append(Loop(start, period, end - start))
    return sorted(found, key=lambda loop: (-loop.length, loop.period, loop.start))


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [
        ([], 4, 0.0),
        ([1, 2, 3], 4, 0.0),
        ([1, 2, 3, 4], 4, 0.0),
        ([1, 1, 1, 1, 1], 4, 0.5),
        ([1, 2, 1, 2, 1, 2], 2, 1 - 2 / 5),
        ([5, 5, 5, 5], 1, 0.75),
        ([1, 2, 3, 4, 5, 6], 2, 0.0),
    ],
)
def test_repeated_share(tokens: list[int], n: int, share: float) -> None:
    assert repeated_share(tokens, n) == pytest.approx(share)


@given(small, st.integers(1, 5), st.integers(1, 1000))
def test_repeated_share_properties(tokens: list[int], n: int, shift: int) -> None:
    share = repeated_share(tokens, n)
    assert 0 <= share < 1
    repeated, total = repeated_ngrams(tokens, n)
    assert total == max(0, len(tokens) - n + 1)
    assert repeated == pytest.approx(share * total)
    assert repeated_share([t + shift for t in tokens], n) == share
    assert repeated_share(tokens[::-1], n) == pytest.approx(share)


@given(st.lists(st.integers(), unique=True, max_size=30), st.integers(1, 5))
def test_distinct_tokens_repeat_nothing(tokens: list[int], n: int) -> None:
    assert repeated_share(tokens, n) == 0


@pytest.mark.parametrize(
    ("tokens", "loop"),
    [
        ([], None),
        ([7, 7], None),
        ([7, 7, 7], Loop(0, 1, 3)),
        ([1, 2, 1, 2, 1], None),
        ([9, 1, 2, 1, 2, 1, 2, 1, 8], Loop(1, 2, 7)),
        ([3, 3, 3, 0, 4, 4, 4], Loop(0, 1, 3)),
        ([1, 1, 1, 1, 1, 1], Loop(0, 1, 6)),
    ],
)
def test_longest_loop(tokens: list[int], loop: Loop | None) -> None:
    assert longest_loop(tokens) == loop


def test_repeats_counts_parts() -> None:
    loop = longest_loop([1, 2, 3, 4] * 3 + [1, 2])
    assert loop == Loop(0, 4, 14)
    assert loop is not None
    assert loop.repeats == 3.5


@given(small, st.integers(2, 4))
def test_longest_loop_against_all_loops(tokens: list[int], min_repeats: int) -> None:
    expected = all_loops(tokens, min_repeats)
    assert longest_loop(tokens, min_repeats) == (expected[0] if expected else None)


@given(small, st.integers(2, 4), st.integers(1, 10))
def test_ends_in_loop_against_all_loops(tokens: list[int], min_repeats: int, min_length: int) -> None:
    at_end = [
        loop
        for loop in all_loops(tokens, min_repeats)
        if loop.start + loop.length == len(tokens) and loop.length >= min_length
    ]
    assert ends_in_loop(tokens, min_repeats, min_length) == (at_end[0] if at_end else None)


@given(texts, st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(3, 8))
def test_a_loop_at_the_end_is_found(head: list[int], block: list[int], times: int) -> None:
    tokens = head + block * times
    loop = ends_in_loop(tokens, min_length=1)
    assert loop is not None
    assert loop.start + loop.length == len(tokens)
    assert loop.length >= len(block) * times
    longest = longest_loop(tokens)
    assert longest is not None
    assert longest.length >= loop.length


def test_a_loop_that_ended_is_not_at_the_end() -> None:
    assert ends_in_loop([1, 2] * 20 + [3]) is None
    assert ends_in_loop([0] + [1, 2] * 20) == Loop(1, 2, 40)
    assert ends_in_loop([1] * 15) is None
    assert ends_in_loop([1] * 16) == Loop(0, 1, 16)


@pytest.mark.parametrize("function", [longest_loop, ends_in_loop])
def test_nonsense_is_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="min_repeats is 1; expected at least 2"):
        function([1, 2], 1)
    with pytest.raises(ValueError, match="n is 0; expected at least 1 token"):
        repeated_share([1], 0)


def test_long_texts_take_no_time() -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 4096).tolist()
    start = time.process_time()
    longest_loop(tokens)
    ends_in_loop(tokens)
    longest_loop([1] * 4096)
    assert time.process_time() - start < 2
