"""Lazy views of matrices with low-rank terms added (LoRA), and rescaled to given norms (DoRA).

Sums are computed in float64 and rounded once; any range is computed from its own rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import PIECE, Computed, View
from quant.encode import FloatArray

Doubles = NDArray[np.float64]

HELD = 4
"""Terms whose factors are kept in memory: those of the tensors that are being read."""


@dataclass(frozen=True, eq=False)
class Term:
    """`scale` · `left` · `right`: left has the shape (outputs, rank), right (rank, inputs).

    With `transposed` the product is added to a matrix that is stored as (inputs, outputs).
    """

    left: Tensor
    right: Tensor
    scale: float
    transposed: bool = False

    def factors(self) -> tuple[FloatArray, FloatArray]:
        """The two factors in the stored orientation, without the scale; read once for consecutive calls."""
        left, right = _held(self)
        return (right.T, left.T) if self.transposed else (left, right)

    def rows(self, first: int, last: int) -> Doubles:
        """Rows `first` to `last` of the term in the stored orientation."""
        left, right = self.factors()
        return self.scale * (left[first:last].astype(np.float64) @ right.astype(np.float64))


@lru_cache(HELD)
def _held(term: Term) -> tuple[FloatArray, FloatArray]:
    return term.left.array(), term.right.array()


class ByRows(Computed):
    """A tensor that is computed row by row (along the last axis) in float64; a vector is a single row."""

    @abstractmethod
    def rows(self, first: int, last: int) -> Doubles:
        """Rows `first` to `last`, shape (last - first, columns)."""

    def numbers(self, start: int, stop: int) -> Doubles:
        if stop <= start:
            return np.empty(0)
        width = self.columns
        first, last = start // width, -(-stop // width)
        return self.rows(first, last).reshape(-1)[start - first * width : stop - first * width]

    def flat(self, start: int, stop: int) -> FloatArray:
        with np.errstate(over="ignore"):  # the writer refuses what is not finite, by name
            return self.numbers(start, stop).astype(np.float32)


def is_merged(tensor: Tensor) -> bool:
    """Whether a tensor is computed from one with low-rank terms, or changed by an adapter in another way."""
    if isinstance(tensor, ByRows):
        return True
    return isinstance(tensor, View) and any(map(is_merged, tensor.parts))


@dataclass(frozen=True, eq=False)
class LowRank(ByRows):
    """A matrix plus low-rank terms."""

    base: Tensor
    terms: tuple[Term, ...]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def rows(self, first: int, last: int) -> Doubles:
        width = self.columns
        made = self.base.numbers(first * width, last * width).reshape(-1, width)
        for term in self.terms:
            made = made + term.rows(first, last)
        return made


@dataclass(frozen=True, eq=False)
class Plus(ByRows):
    """A vector plus `scale` times another."""

    base: Tensor
    added: Tensor
    scale: float

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def rows(self, first: int, last: int) -> Doubles:
        made = self.base.numbers(0, self.size) + self.scale * self.added.numbers(0, self.size)
        return made.reshape(1, -1)[first:last]


@dataclass(frozen=True, eq=False)
class WithNorms(ByRows):
    """A matrix whose rows, or columns, are rescaled so that their Euclidean norms are the elements of `norms` (DoRA).

    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024), equation 5.
    """

    base: Tensor
    norms: Tensor
    by_columns: bool = False

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    @cached_property
    def _column_factors(self) -> Doubles:
        squares = np.zeros(self.columns)
        for first, last in self._pieces():
            block = self._block(first, last)
            squares += np.einsum("ij,ij->j", block, block)
        return self._norms / np.sqrt(squares)

    @cached_property
    def _norms(self) -> Doubles:
        return self.norms.numbers(0, self.norms.size)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        step, rows = max(1, PIECE // self.columns), self.shape[0]
        return ((row, min(row + step, rows)) for row in range(0, rows, step))

    def _block(self, first: int, last: int) -> Doubles:
        return self.base.numbers(first * self.columns, last * self.columns).reshape(-1, self.columns)

    def rows(self, first: int, last: int) -> Doubles:
        block = self._block(first, last)
        # A row of zeros has no direction: as in PEFT the result is not finite, which the writer refuses by name.
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.by_columns:
                factors = self._column_factors
            else:
                factors = (self._norms[first:last] / np.sqrt(np.einsum("ij,ij->i", block, block)))[:, None]
            return np.asarray(block * factors)
