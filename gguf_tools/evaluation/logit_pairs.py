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
    for batch in batches(sequences, runtime.info.n_vocab):
        if is_long(sequences[batch[0]], runtime.info.n_vocab):
            for start, ours, theirs in _in_blocks(runtime, reference, sequences[batch[0]], tell):
                yield batch[0], start, ours, theirs
        else:
            yield from _together(runtime, reference, {n: sequences[n] for n in batch})


def batches(sequences: Sequence[Sequence[int]], n_vocab: int) -> Iterator[list[int]]:
    """The indices of sequences that run together, in order: short ones up to `_REFERENCE_BYTES` of logits, a long one alone."""
    most = _most_tokens(n_vocab)
    batch: list[int] = []
    for index, sequence in enumerate(sequences):
        long = is_long(sequence, n_vocab)
        if batch and (long or sum(len(sequences[n]) for n in (*batch, index)) > most):
            yield batch
            batch = []
        if long:
            yield [index]
        else:
            batch.append(index)
    if batch:
        yield batch


def is_long(sequence: Sequence[int], n_vocab: int) -> bool:
    """Whether a sequence is read block by block."""
    return len(sequence) > min(_most_tokens(n_vocab), _WHOLE)


def _most_tokens(n_vocab: int) -> int:
    """Tokens whose logits have `_REFERENCE_BYTES`."""
    return max(1, _REFERENCE_BYTES // (8 * max(n_vocab, 1)))


def _together(
    runtime: BlockRuntime, reference: ReferenceLike, sequences: Mapping[int, list[int]]
) -> Iterator[tuple[int, int, Logits, Logits]]:
    """The sequences, by their indices, each as one block that begins at position 0."""
    batch = list(sequences.values())
    answers = reference.logits(batch)
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
