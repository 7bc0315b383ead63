"""Golden logits as evidence: sequences to solve from, and one that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.errors import InputError

FLOORS = {"float64": 1e-20, "float32": 1e-11, "float16": 1e-5, "bfloat16": 1e-3}
"""The NMSE that logits of this type leave to the true decoder at most, computed as their type says."""
SPANS = {"float64": 1e-11, "float32": 1e-10, "float16": 1e-6, "bfloat16": 1e-4}
"""The share of logits of this type outside the span of the output matrix at most."""
SEARCHED = 1e-6
"""The NMSE at which a search over discrete choices ends, if the logits are precise."""
COARSE = ("float16", "bfloat16")
"""Types in which rounding hides what has little effect."""


@dataclass(frozen=True)
class Batch:
    """Token sequences of one length, shape (sequences, length), and their logits (sequences, length, rows)."""

    tokens: torch.Tensor
    logits: torch.Tensor

    @property
    def length(self) -> int:
        """Tokens of each sequence."""
        return self.tokens.shape[1]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Golden logits, shape (length, vocabulary) for each sequence; `held` is the sequence that the solver does not see.

    `dtype` is the coarsest type that the logits were computed or stored in.
    """

    sequences: tuple[tuple[int, ...], ...]
    logits: tuple[NDArray[np.floating], ...]
    dtype: str
    held: int | None

    @property
    def seen(self) -> list[int]:
        """The numbers of the sequences that are solved from."""
        return [n for n in range(len(self.sequences)) if n != self.held]

    @property
    def floor(self) -> float:
        """The NMSE below which the logits are explained."""
        return FLOORS[self.dtype]

    @property
    def coarse(self) -> bool:
        """Whether the logits were rounded to 16 bits."""
        return self.dtype in COARSE

    @property
    def probabilities(self) -> bool:
        """Whether the logits are none, but positive numbers that add up to 1 over the vocabulary."""
        return all((array >= 0).all() and np.allclose(array.sum(1), 1, atol=1e-2) for array in self.logits)

    @property
    def goal(self) -> float:
        """The NMSE on one-token prompts at which a search may end: what is left then is continuous, or rounding."""
        return max(SEARCHED, self.floor) if self.coarse else SEARCHED

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is solved from."""
        return max(len(self.sequences[n]) for n in self.seen)

    def starts(self, rows: NDArray[np.int64], most: int = 12) -> Batch:
        """The first position of up to `most` sequences with different first tokens, with the logits in `rows`."""
        first = {self.sequences[n][0]: n for n in reversed(self.seen)}
        chosen = sorted(first.values())[:most]
        return self.batch(chosen, 1, rows)

    def prefixes(self, length: int, rows: NDArray[np.int64], most: int) -> Batch | None:
        """The first `length` tokens of up to `most` sequences that have as many; None if none has."""
        long = [n for n in self.seen if len(self.sequences[n]) >= length]
        return self.batch(long[:most], length, rows) if long else None

    def batch(self, chosen: Sequence[int], length: int, rows: NDArray[np.int64] | None = None) -> Batch:
        """The first `length` tokens of the chosen sequences."""
        tokens = torch.tensor([self.sequences[n][:length] for n in chosen])
        kept = [self.logits[n][:length] if rows is None else self.logits[n][:length, rows] for n in chosen]
        return Batch(tokens, torch.from_numpy(np.stack(kept).astype(np.float64)))


def solving_sequences(vocabulary: int, context: int) -> tuple[tuple[int, ...], ...]:
    """Random token sequences to solve from: eight of one token, one of 16, one of 128, and one of 24 to be held out."""
    rng = np.random.default_rng(0)
    lengths = (*(1,) * 8, 16, 128, 24)
    return tuple(tuple(rng.integers(0, vocabulary, min(length, context)).tolist()) for length in lengths)


def evidence(
    sequences: Sequence[Sequence[int]], logits: Sequence[NDArray[np.floating]], dtypes: Sequence[str], name: str
) -> Evidence:
    """Evidence from golden sequences; the last one that is neither the longest nor one token long is held out.

    Raises InputError, with `name`, for shapes that do not fit together.
    """
    widths = {array.shape[1] for array in logits}
    if len(widths) != 1:
        raise InputError(
            f"{name}: logits have {' and '.join(map(str, sorted(widths)))} columns; expected one vocabulary"
        )
    (vocabulary,) = widths
    for n, tokens in enumerate(sequences):
        if not all(0 <= token < vocabulary for token in tokens):
            raise InputError(f"{name}: tokens_{n} has ids beyond the logits' vocabulary of {vocabulary}")
    for n, array in enumerate(logits):
        if not (np.ptp(array, axis=1) > 0).all():
            raise InputError(
                f"{name}: logits_{n} are the same for every token of the vocabulary; expected the model's raw logits"
            )
    lengths = [len(tokens) for tokens in sequences]
    longest = max(lengths)
    middle = [n for n, length in enumerate(lengths) if length > 1 and n != lengths.index(longest)]
    kinds = [_computed(array, kind) for array, kind in zip(logits, dtypes, strict=True)]
    dtype = max(kinds, key=lambda kind: FLOORS[kind])
    return Evidence(
        sequences=tuple(tuple(map(int, tokens)) for tokens in sequences),
        logits=tuple(logits),
        dtype=dtype,
        held=middle[-1] if middle else None,
    )


def _computed(logits: NDArray[np.floating], stored: str) -> str:
    """The type that logits were computed in: a coarser one than they are stored in where all of them are numbers of it."""
    if stored not in ("float32", "float64"):
        return stored if stored in FLOORS else "float32"
    if stored == "float64" and not np.array_equal(logits.astype(np.float32), logits):
        return stored
    values = np.ascontiguousarray(logits, np.float32)
    if not (values.view(np.uint32) & 0xFFFF).any():
        return "bfloat16"
    with np.errstate(over="ignore"):
        return "float16" if np.array_equal(values.astype(np.float16), values) else "float32"
