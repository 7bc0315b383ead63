"""One run of the reference for several files of the same model: its greedy text after each prompt, and its logits there.

The logits go to a file without a name, so that neither they nor the reference's weights are in memory while the files run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import OutputError
from gguf_tools.evaluation.fidelity import Case
from gguf_tools.evaluation.logit_pairs import BlockReference, ReferenceLike, batches, is_long
from gguf_tools.evaluation.metrics import Logits
from gguf_tools.formats.output import require_room
from gguf_tools.formats.scratch import unnamed_file
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.interface import BlockRuntime

ROUNDS = 6
"""Times that the model drafts again after a token that the reference gives otherwise; then the text ends there."""
BLOCK = 256
"""Positions of a long sequence that the reference computes at a time."""
Tell = Callable[[str, int, int], None]


class SharedReference:
    """What the reference computed for some prompts: a `ReferenceLike` of the sequences that they and its own texts make.

    `continuations` has the reference's greedy text after each prompt.
    """

    def __init__(self, stream: BinaryIO, room: Sequence[int], n_vocab: int, dtype: npt.DTypeLike = np.float32) -> None:
        """Room in `stream` for the logits of sequences with these numbers of positions."""
        self.continuations: tuple[tuple[int, ...], ...] = ()
        self._stream = stream
        self._dtype = np.dtype(dtype)
        self._row = n_vocab * self._dtype.itemsize
        self._n_vocab = n_vocab
        self._starts = [0, *np.cumsum(room).tolist()]
        self._slots: dict[tuple[int, ...], int] = {}

    def close(self) -> None:
        """Remove the logits."""
        self._stream.close()

    def write(self, slot: int, position: int, rows: Logits) -> None:
        """Keep the logits of a sequence from `position` on."""
        data = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data
        at = (self._starts[slot] + position) * self._row
        try:
            while data:
                count = os.pwrite(self._stream.fileno(), data, at)
                data, at = data[count:], at + count
        except OSError as error:
            raise OutputError(
                f"the reference's logits could not be kept in a temporary file ({error.strerror}); free some disk space"
            ) from error

    def finish(self, sequences: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> None:
        """Set the sequences whose logits have been written, one for each slot, and the texts within them."""
        self._slots = {tuple(sequence): slot for slot, sequence in enumerate(sequences)}
        self.continuations = tuple(map(tuple, continuations))

    def logits(self, sequences: list[list[int]]) -> list[Logits]:
        """For each sequence its logits at every position, (T, n_vocab)."""
        return [self._read(sequence, 0, len(sequence)) for sequence in sequences]

    def blocks(self, tokens: Sequence[int], size: int, progress: CountProgress | None = None) -> Iterator[Logits]:
        """One sequence's logits, `size` positions at a time."""
        for start in range(0, len(tokens), size):
            yield self._read(tokens, start, min(start + size, len(tokens)))

    def _read(self, sequence: Sequence[int], start: int, stop: int) -> Logits:
        """A sequence's logits at positions `start` to `stop`; ValueError if it is not one of those that were run."""
        slot = self._slots.get(tuple(sequence))
        if slot is None:
            raise ValueError(f"the reference was not run on this sequence of {len(sequence)} tokens")
        data = bytearray((stop - start) * self._row)
        view, at = memoryview(data), (self._starts[slot] + start) * self._row
        while view:
            count = os.preadv(self._stream.fileno(), [view], at)
            if not count:
                raise ValueError(f"the reference's logits end at byte {at}")
            view, at = view[count:], at + count
        return np.frombuffer(data, self._dtype).reshape(stop - start, self._n_vocab)


def share_reference(
    runtime: BlockRuntime, reference: ReferenceLike, cases: Sequence[Case], folder: Path, tell: Tell
) -> SharedReference:
    """Run the reference on the prompts and its own greedy texts after them, its logits kept in a temporary file in `folder`.

    The model drafts each text, and the reference verifies it: up to the first difference a draft is the reference's own text, and
    the reference gives the token after it. Then the model drafts the rest again, `ROUNDS` times at most. One run of the reference
    is enough if it agrees with the first draft. Raises OutputError if the disk has no room.
    """
    room = [len(case.ids) + case.n_generate for case in cases]
    n_vocab = runtime.info.n_vocab
    try:
        require_room(folder / "the reference's logits", 4 * n_vocab * sum(room))
        stream = unnamed_file("tinyq-logits", folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot create a temporary file ({error.strerror}); choose another folder"
        ) from error
    kept = SharedReference(stream, room, n_vocab)
    try:
        texts = _own_texts(runtime, reference, cases, kept, tell)
    except BaseException:
        kept.close()
        raise
    kept.finish([[*case.ids, *text[:-1]] for case, text in zip(cases, texts, strict=True)], texts)
    return kept


def _own_texts(
    runtime: BlockRuntime, reference: ReferenceLike, cases: Sequence[Case], kept: SharedReference, tell: Tell
) -> list[list[int]]:
    """The reference's greedy text after each prompt; its logits up to the last token but one are kept."""
    texts: list[list[int]] = [[] for _ in cases]
    unfinished = list(range(len(cases)))
    for _ in range(ROUNDS):
        prompts = [[*cases[n].ids, *texts[n]] for n in unfinished]
        left = [cases[n].n_generate - len(texts[n]) for n in unfinished]
        drafts = runtime.greedy(prompts, left, progress=lambda done, total: tell("greedy", done, total))
        sequences = [[*prompt, *draft.tokens[:-1]] for prompt, draft in zip(prompts, drafts, strict=True)]
        for at, start, rows in _runs(reference, sequences, runtime.info.n_vocab, tell):
            slot = unfinished[at]
            kept.write(slot, start, rows)
            _confirm(texts[slot], cases[slot], sequences[at], start, rows)
        unfinished = [n for n in unfinished if len(texts[n]) < cases[n].n_generate]
        if not unfinished:
            break
    return texts


def _confirm(text: list[int], case: Case, sequence: Sequence[int], start: int, rows: Logits) -> None:
    """Add to `text` the tokens that the reference gives in these rows, as long as the draft in `sequence` has the same."""
    for position, token in enumerate(rows.argmax(axis=-1).tolist(), start):
        written = position + 1 - len(case.ids)
        if written != len(text):
            continue  # within what is known, or after a difference
        if text and sequence[position] != text[-1]:
            return
        text.append(token)


def _runs(
    reference: ReferenceLike, sequences: Sequence[list[int]], n_vocab: int, tell: Tell
) -> Iterator[tuple[int, int, Logits]]:
    """The reference's logits of all sequences, as (index, position of the first row, rows)."""
    done, total = 0, sum(map(len, sequences))
    for batch in batches(sequences, n_vocab):
        chosen = [sequences[index] for index in batch]
        if is_long(chosen[0], n_vocab) and isinstance(reference, BlockReference):
            for n, rows in enumerate(reference.blocks(chosen[0], BLOCK)):
                yield batch[0], n * BLOCK, rows
        else:
            for index, rows in zip(batch, reference.logits(chosen), strict=True):
                yield index, 0, rows
        done += sum(map(len, chosen))
        tell("reference", done, total)
