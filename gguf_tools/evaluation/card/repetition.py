"""Repetition in generated text, measured on token ids: the share of repeated n-grams, and loops.

The share is 1 − distinct n-grams / n-grams, "seq-rep-n" of Welleck et al. 2020 (Neural Text Generation with Unlikelihood
Training). A loop is a periodic run of tokens: each equals the token `period` positions before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NGRAM = 4
"""Default n of the n-grams, the usual one for reports of repetition."""


@dataclass(frozen=True)
class Loop:
    """A block of `period` tokens that repeats from token `start` on, over `length` tokens in all.

    The last repetition may be cut short, so `length` need not be a multiple of `period`.
    """

    start: int
    period: int
    length: int

    @property
    def repeats(self) -> float:
        """Number of repetitions of the block, a cut-short one counted as a fraction."""
        return self.length / self.period


def repeated_ngrams(tokens: Sequence[int], n: int = NGRAM) -> tuple[int, int]:
    """(number of n-grams that occurred before in the text, number of all n-grams).

    Raises ValueError for an n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1 token per n-gram")
    total = max(len(tokens) - n + 1, 0)
    distinct = len({tuple(tokens[i : i + n]) for i in range(total)})
    return total - distinct, total


def longest_loop(tokens: Sequence[int], min_repeats: int = 3) -> Loop | None:
    """The longest loop with at least `min_repeats` whole repetitions, or None.

    Ties go to the smallest period, then to the earliest start. Time is O(n²) in the number of tokens.
    Raises ValueError for `min_repeats` below 2, where any token would be a loop.
    """
    best: Loop | None = None
    for period, same in _matches(tokens, min_repeats):
        breaks = np.concatenate(([-1], np.flatnonzero(~same), [len(same)]))
        runs = np.diff(breaks) - 1
        at = int(runs.argmax())
        best = _longer(best, Loop(int(breaks[at]) + 1, period, int(runs[at]) + period), min_repeats)
    return best


def ends_in_loop(tokens: Sequence[int], min_repeats: int = 3, min_length: int = 16) -> Loop | None:
    """The longest loop that reaches the last token and covers at least `min_length` tokens, or None.

    It is an endless loop only if the generation did not end by itself, which the caller has to check. Ties, time and errors
    as for `longest_loop`.
    """
    best: Loop | None = None
    for period, same in _matches(tokens, min_repeats):
        breaks = np.flatnonzero(~same)
        start = int(breaks[-1]) + 1 if len(breaks) else 0
        best = _longer(best, Loop(start, period, len(tokens) - start), min_repeats)
    return best if best is not None and best.length >= min_length else None


def _matches(tokens: Sequence[int], min_repeats: int) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """For each possible period in ascending order: (period, whether token i + period equals token i, for every i)."""
    if min_repeats < 2:
        raise ValueError(f"min_repeats is {min_repeats}; expected at least 2")
    ids = np.asarray(tokens, dtype=np.int64)
    for period in range(1, len(ids) // min_repeats + 1):
        yield period, ids[period:] == ids[:-period]


def _longer(best: Loop | None, found: Loop, min_repeats: int) -> Loop | None:
    if found.length < min_repeats * found.period or (best is not None and found.length <= best.length):
        return best
    return found
