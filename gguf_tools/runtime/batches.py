"""Batches of tokens for several sequences, with the rows of logits that are wanted of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """The logits after one token; of request `request`, they predict the token `target` (-1 if none is given)."""

    offset: int
    request: int
    target: int = -1


@dataclass(frozen=True)
class Part:
    """Tokens to append to a sequence, from position `start`; `rows` are the logits wanted, by offset into `tokens`."""

    sequence: int
    start: int
    tokens: Tokens
    rows: tuple[Row, ...]


class Decoder(Protocol):
    """The methods of `engine.Engine` that decode a batch."""

    n_vocab: int

    def decode(self, tokens: Tokens, positions: Tokens, sequences: Tokens, wanted: npt.NDArray[np.int8]) -> None:
        """Decode one batch."""

    def outputs(self, count: int) -> Logits:
        """The logits of the last batch's wanted positions."""


def batches(parts: Iterable[Part], most_tokens: int) -> Iterator[list[Part]]:
    """The parts in batches of at most `most_tokens` tokens; a part may be cut."""
    batch: list[Part] = []
    room = most_tokens
    for part in parts:
        at = 0
        while at < len(part.tokens):
            end = min(at + room, len(part.tokens))
            rows = tuple(Row(row.offset - at, row.request, row.target) for row in part.rows if at <= row.offset < end)
            batch.append(Part(part.sequence, part.start + at, part.tokens[at:end], rows))
            room -= end - at
            at = end
            if not room:
                yield batch
                batch, room = [], most_tokens
    if batch:
        yield batch


def decode_parts(decoder: Decoder, batch: Sequence[Part]) -> list[Logits]:
    """Decode one batch; for each part, the logits at the offsets of its rows, each once, as a view until the next batch."""
    wanted = [np.zeros(len(part.tokens), dtype=np.int8) for part in batch]
    for part, flags in zip(batch, wanted, strict=True):
        flags[[row.offset for row in part.rows]] = 1
    decoder.decode(
        np.concatenate([part.tokens for part in batch]),
        np.concatenate([np.arange(part.start, part.start + len(part.tokens), dtype=np.int32) for part in batch]),
        np.concatenate([np.full(len(part.tokens), part.sequence, dtype=np.int32) for part in batch]),
        np.concatenate(wanted),
    )
    counts = [int(flags.sum()) for flags in wanted]
    if not any(counts):
        return [np.zeros((0, decoder.n_vocab), dtype=np.float32) for _ in batch]
    return list(np.split(decoder.outputs(sum(counts)), np.cumsum(counts)[:-1]))
