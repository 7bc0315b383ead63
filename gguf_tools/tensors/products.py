"""Lazy views of a matrix that need more than one element at a time: its rows mapped, its columns centred, its product with a
vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import PIECE, Computed, View
from quant.encode import FloatArray

Doubles = NDArray[np.float64]


def _blocks(base: Tensor, first: int, last: int) -> Iterator[tuple[int, Doubles]]:
    """Rows `first` to `last` of the base in pieces: (number of the piece's first row, the rows in float64)."""
    columns = base.columns
    step = max(1, PIECE // columns)
    for row in range(first, last, step):
        end = min(row + step, last)
        yield row, base.flat(row * columns, end * columns).reshape(-1, columns).astype(np.float64)


@dataclass(frozen=True, eq=False)
class RowsMapped(Computed):
    """Each row (along the last axis) mapped by `function`: rows in float64, shape (some, columns) → rows of the same shape.

    `linear` says that the function of a sum of rows is the sum of their functions.
    """

    base: Tensor
    function: Callable[[Doubles], Doubles]
    label: str
    linear: bool = False

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def flat(self, start: int, stop: int) -> FloatArray:
        if stop <= start:
            return np.empty(0, np.float32)
        width = self.columns
        first, last = start // width, -(-stop // width)
        rows = [self.function(block) for _, block in _blocks(self.base, first, last)]
        made = np.concatenate(rows).astype(np.float32).reshape(-1)
        return np.asarray(made[start - first * width : stop - first * width], np.float32)


@dataclass(frozen=True, eq=False)
class Centred(Computed):
    """Matrices (…, outputs, inputs) whose outputs have the mean 0 for every input: each column minus its mean over the outputs.

    A vector is taken for the only column of a matrix. The means are found when an element is first read.
    """

    base: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """Outputs and inputs of a matrix."""
        shape = self.base.shape
        return (shape[0], 1) if len(shape) == 1 else (shape[-2], shape[-1])

    @cached_property
    def _means(self) -> Doubles:
        """The means, shape (matrices, inputs)."""
        outputs, inputs = self._sizes
        found = np.zeros((self.base.size // (outputs * inputs), inputs))
        if inputs == 1:
            for n in range(len(found)):
                found[n] = self.base.flat(n * outputs, (n + 1) * outputs).astype(np.float64).mean()
            return found
        for n in range(len(found)):
            for _, block in _blocks(self.base, n * outputs, (n + 1) * outputs):
                found[n] += block.sum(axis=0)
        return found / outputs

    def flat(self, start: int, stop: int) -> FloatArray:
        outputs, inputs = self._sizes
        at = np.arange(start, stop)
        means = self._means[at // (outputs * inputs), at % inputs]
        return np.asarray(self.base.flat(start, stop).astype(np.float64) - means, np.float32)


@dataclass(frozen=True, eq=False)
class ScaledColumns(Computed):
    """Column j of a matrix times element j of the vector `factors` plus `offset`."""

    base: Tensor
    factors: Tensor
    offset: float = 0.0

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base, self.factors)

    @cached_property
    def _factors(self) -> Doubles:
        return self.factors.array().astype(np.float64) + self.offset

    def flat(self, start: int, stop: int) -> FloatArray:
        factors = self._factors[np.arange(start, stop) % self.columns]
        return np.asarray(self.base.flat(start, stop).astype(np.float64) * factors, np.float32)


@dataclass(frozen=True, eq=False)
class Product(View):
    """The product of a matrix, shape (rows, columns), and a vector, plus another vector of `rows` elements if there is one."""

    matrix: Tensor
    vector: Tensor
    added: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (prod(self.matrix.shape[:-1]),)

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "F32"

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.matrix, self.vector) + (() if self.added is None else (self.added,))

    def flat(self, start: int, stop: int) -> FloatArray:
        if stop <= start:
            return np.empty(0, np.float32)
        vector = self.vector.array().astype(np.float64)
        made = np.concatenate([block @ vector for _, block in _blocks(self.matrix, start, stop)])
        if self.added is not None:
            made = made + self.added.flat(start, stop)
        return np.asarray(made, np.float32)


@dataclass(frozen=True)
class Identity(Tensor):
    """The identity matrix of `order` rows; uses no memory for its elements."""

    order: int
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.order, self.order)

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    def flat(self, start: int, stop: int) -> FloatArray:
        out = np.zeros(max(0, stop - start), np.float32)
        step = self.order + 1
        out[-start % step :: step] = 1.0
        return out
