"""Importance matrices: the mean squared activations that multiply each column of each weight matrix, on a text.

The statistics are those of llama.cpp's `llama-imatrix`: for each tensor that multiplies activations, the sum over tokens of
the squared activations, per column (and per expert), and the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from quant.encode import FloatArray
from quant.errors import InputError
from quant.recipes import TensorFacts

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """One tensor's statistics: `sums` (matrices, columns) of squared activations, and `counts` (matrices,) of tokens."""

    sums: FloatArray
    counts: Counts

    @property
    def importance(self) -> FloatArray:
        """Mean square of each column's activations, in the shape of `sums`; 1 for experts without tokens."""
        counts = self.counts.astype(np.float32)[:, None]
        seen = np.divide(self.sums, counts, out=np.ones_like(self.sums), where=counts > 0)
        return seen


@dataclass(frozen=True, kw_only=True)
class ImportanceMatrix:
    """Statistics by tensor name, with the names of the texts and the number of chunks of `chunk_size` tokens."""

    entries: Mapping[str, Statistics]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0
    name: str = "the importance matrix"

    def importance(self, tensors: Iterable[TensorFacts]) -> dict[str, FloatArray]:
        """The importance, shape (matrices, columns), of each of `tensors` with statistics.

        Statistics of tensors that the model lacks are left out (`unused` names them). Raises InputError, with the first
        mismatch, if the matrix is of another model: sizes differ, or no tensor is in both.
        """
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        found: dict[str, FloatArray] = {}
        for name, statistics in self.entries.items():
            shape = shapes.get(name)
            if shape is None:
                continue
            columns, matrices = shape[-1], prod(shape[:-2])
            if statistics.sums.size != columns * matrices:
                raise InputError(
                    f"{self.name}: has {statistics.sums.size} values for {name}, whose shape {shape} needs "
                    f"{columns * matrices}; collect them with this model"
                )
            found[name] = statistics.importance.reshape(matrices, columns)
        if self.entries and not found:
            first = next(iter(self.entries))
            raise InputError(
                f"{self.name}: has statistics of {first} and other tensors, none of which the model has; collect them with this "
                "model"
            )
        return found

    def unused(self, tensors: Iterable[TensorFacts]) -> tuple[str, ...]:
        """A note if the matrix has statistics of tensors that the model lacks (as after pruning, or without MTP blocks)."""
        names = {tensor.name for tensor in tensors}
        beyond = [name for name in self.entries if name not in names]
        if not beyond:
            return ()
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        return (f"the importance matrix has statistics of {beyond[0]}{more}, which the model lacks: they are not used",)


def merge(matrices: Sequence[ImportanceMatrix]) -> ImportanceMatrix:
    """The sum of the statistics of several matrices.

    Raises InputError if two have different sizes for a tensor.
    """
    entries: dict[str, Statistics] = {}
    for matrix in matrices:
        for name, new in matrix.entries.items():
            old = entries.get(name)
            entries[name] = new if old is None else _added(name, old, new, matrix.name)
    return ImportanceMatrix(
        entries=entries,
        datasets=tuple(dict.fromkeys(dataset for matrix in matrices for dataset in matrix.datasets)),
        chunks=sum(matrix.chunks for matrix in matrices),
        chunk_size=max((matrix.chunk_size for matrix in matrices), default=0),
    )


def _added(name: str, old: Statistics, new: Statistics, whose: str) -> Statistics:
    """The sum of two statistics of the tensor `name`; InputError, naming the matrix `whose`, if their sizes differ."""
    if old.sums.size != new.sums.size:
        raise InputError(
            f"{whose}: has {new.sums.size} values for {name}, but another matrix has {old.sums.size}; merge matrices of one model"
        )
    # Files in the old format have one count for all experts.
    count = max(len(old.counts), len(new.counts))
    if count % len(old.counts) or count % len(new.counts):
        raise InputError(
            f"{whose}: has counts of {len(new.counts)} experts for {name}, but another matrix has {len(old.counts)}; merge "
            "matrices of one model"
        )
    sums = old.sums.reshape(count, -1) + new.sums.reshape(count, -1)
    counts = np.repeat(old.counts, count // len(old.counts)) + np.repeat(new.counts, count // len(new.counts))
    return Statistics(sums, counts)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Coverage of a tensor by a text: `tokens` of the matrix (expert) with the fewest, its index `matrix`, and the number
    `unseen` of matrices without tokens."""

    name: str
    tokens: int
    matrix: int
    matrices: int
    unseen: int


def coverage(matrix: ImportanceMatrix) -> tuple[Coverage, ...]:
    """The coverage of every tensor, the least covered first."""
    found = [
        Coverage(
            name=name,
            tokens=int(entry.counts.min(initial=1 << 62)),
            matrix=int(entry.counts.argmin()),
            matrices=len(entry.counts),
            unseen=int((entry.counts == 0).sum()),
        )
        for name, entry in matrix.entries.items()
        if entry.counts.size
    ]
    return tuple(sorted(found, key=lambda one: (one.tokens, -one.unseen, one.name)))
