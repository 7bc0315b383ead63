"""The logits of a model and of its reference, side by side: short sequences whole, long ones block by block.

Memory is bounded by the vocabulary and one block, not by the length of a sequence, if the reference has `blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from gguf_tools.errors import InputError
from gguf_tools.evaluation.metrics import Logits
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.interface import BlockRuntime

_REFERENCE_BYTES = 256 << 20  # logits of one batch of the reference, at 8 bytes each
_WHOLE = 1024
"""Most tokens of a sequence that is compared at once; longer ones are compared block by block."""


class ReferenceLike(Protocol):
    """A reference model: stateless, with batches of sequences."""

    def logits(self, sequences: list[list[int]]) -> Sequence[Logits]:
        """For each sequence the logits of every position, shape (T, n_vocab), float32 or float64."""


@runtime_checkable
class BlockReference(Protocol):
    """A reference that also reads a long sequence block by block, in bounded memory (`Reference.blocks`)."""

    def blocks(self, tokens: Sequence[int], size: int, progress: CountProgress | None = None) -> Iterator[Logits]:
        """One sequence's logits, `size` positions at a time; `progress` counts the layers that have read it."""


def compared(
    runtime: BlockRuntime,
    reference: ReferenceLike,
    sequences: Sequence[list[int]],
    tell: Callable[[str, int, int], None],
) -> Iterator[tuple[int, int, Logits, Logits]]:
    """The logits of all sequences in order, as (index, position of the first row, the reference's, the model's).

    Short sequences come whole, the reference running batches of at most `_REFERENCE_BYTES` of logits; longer ones in blocks.
    """
    most = max(1, _REFERENCE_BYTES // (8 * max(runtime.info.n_vocab, 1)))
    batch: list[int] = []
    for index, sequence in enumerate(sequences):
        long = len(sequence) > min(most, _WHOLE)
        if batch and (long or sum(len(sequences[n]) for n in (*batch, index)) > most):
            yield from _together(runtime, reference, {n: sequences[n] for n in batch})
            batch = []
        if long:
            for start, ours, theirs in _in_blocks(runtime, reference, sequence, tell):
                yield index, start, ours, theirs
        else:
            batch.append(index)
    yield from _together(runtime, reference, {n: sequences[n] for n in batch})


def _together(
    runtime: BlockRuntime, reference: ReferenceLike, sequences: Mapping[int, list[int]]
) -> Iterator[tuple[int, int, Logits, Logits]]:
    """The sequences, by their indices, each as one block that begins at position 0."""
    batch = list(sequences.values())
    answers = reference.logits(batch) if batch else []
    if len(answers) != len(batch):
        raise InputError(f"the reference returned logits of {len(answers)} sequences; expected {len(batch)}")
    for index, ours, theirs in zip(sequences, answers, runtime.iter_logits(batch), strict=True):
        yield index, 0, ours, theirs


def _in_blocks(
    runtime: BlockRuntime, reference: ReferenceLike, sequence: list[int], tell: Callable[[str, int, int], None]
) -> Iterator[tuple[int, Logits, Logits]]:
    """One sequence as (position of the first row, the reference's logits, the model's), block by block."""
    size = runtime.block_size(sequence)
    if isinstance(reference, BlockReference):
        ours = reference.blocks(sequence, size, lambda done, total: tell("reference", done, total))
    else:
        (whole,) = reference.logits([sequence])
        ours = (whole[start : start + size] for start in range(0, len(whole), size))
    start = 0
    for one, other in zip(ours, runtime.iter_blocks(sequence), strict=True):
        yield start, one, other
        start += len(other)
