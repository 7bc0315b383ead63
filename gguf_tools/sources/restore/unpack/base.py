"""Weights computed from packed integers, scales and zero points, a few rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.restore.unpack.bits import dense, padded
from gguf_tools.sources.restore.unpack.whole import whole_bytes, whole_floats
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import View
from quant.encode import FloatArray

Numbers = NDArray[Any]


class Reader(ABC):
    """Reads a part of each of some rows of a matrix: its integers, or the scales or zero points of its groups of columns."""

    tensor: Tensor

    @abstractmethod
    def rows(self, first: int, last: int) -> Numbers:
        """Rows `first` to `last`, shape (last - first, numbers of a row)."""


@dataclass(frozen=True, eq=False)
class Floats(Reader):
    """Floats of a tensor whose last axis is the row."""

    tensor: Tensor

    def rows(self, first: int, last: int) -> Numbers:
        width = self.tensor.columns
        return self.tensor.flat(first * width, last * width).reshape(-1, width)


@dataclass(frozen=True, eq=False)
class FloatColumns(Reader):
    """Floats of a matrix that holds each row as a column, (numbers of a row, rows)."""

    tensor: Tensor

    def rows(self, first: int, last: int) -> Numbers:
        return np.asarray(whole_floats(self.tensor)[:, first:last].T)


@dataclass(frozen=True, eq=False)
class Integers(Reader):
    """Integers of 8 bits, signed or not, in a tensor whose last axis is the row."""

    tensor: Tensor

    def rows(self, first: int, last: int) -> Numbers:
        width = self.tensor.columns
        found = self.tensor.stored_bytes(first * width, last * width).reshape(-1, width)
        return found.view(np.int8) if self.tensor.dtype == "I8" else found


@dataclass(frozen=True, eq=False, kw_only=True)
class Bits(Reader):
    """`count` integers of `bits` bits packed along the last axis of a tensor; with `gaps` a word holds whole integers only."""

    tensor: Tensor
    bits: int
    count: int
    gaps: bool = False

    def rows(self, first: int, last: int) -> Numbers:
        width = self.tensor.columns
        data = self.tensor.stored_bytes(first * width, last * width).reshape(last - first, -1)
        return (padded if self.gaps else dense)(data, self.bits, self.count)


@dataclass(frozen=True, eq=False, kw_only=True)
class BitColumns(Reader):
    """`count` integers of `bits` bits packed along the first axis of a matrix of words that holds each row as a column."""

    tensor: Tensor
    bits: int
    count: int

    def rows(self, first: int, last: int) -> Numbers:
        words = whole_bytes(self.tensor).view("<u4")[:, first:last]
        return dense(np.ascontiguousarray(words.T).view(np.uint8), self.bits, self.count)


@dataclass(frozen=True, eq=False, kw_only=True)
class BitsAcross(Reader):
    """Integers packed along the last axis of a matrix of words (numbers of a row, words), in which each row is a column.

    `order` permutes the integers of a word: place i of the word holds integer `order[i]`.
    """

    tensor: Tensor
    bits: int
    order: tuple[int, ...] = ()

    def rows(self, first: int, last: int) -> Numbers:
        # 32 integers fill whole words, whatever their bits.
        start, stop = first // 32 * 32, -(-last // 32) * 32
        words = whole_bytes(self.tensor)[:, start * self.bits // 8 : stop * self.bits // 8]
        found = dense(np.ascontiguousarray(words), self.bits, words.shape[1] * 8 // self.bits)
        if self.order:
            places = np.argsort(np.asarray(self.order))
            found = found.reshape(len(found), -1, len(places))[:, :, places].reshape(found.shape)
        return np.asarray(found[:, first - start : last - start].T)


@dataclass(frozen=True, eq=False, kw_only=True)
class BitsDown(Reader):
    """Integers packed along the first axis of a matrix of words, (words, numbers of a row): a word has those of several rows."""

    tensor: Tensor
    bits: int
    gaps: bool = False

    def rows(self, first: int, last: int) -> Numbers:
        words = np.ascontiguousarray(whole_bytes(self.tensor).view("<u4").T).view(np.uint8)
        return np.asarray((padded if self.gaps else dense)(words, self.bits, last)[:, first:last].T)


@dataclass(frozen=True, eq=False)
class Groups:
    """Which of `count` groups each of `columns` columns belongs to: runs of `size`, or as the tensor `order` assigns them.

    `order` is read when the first weights are; -1 in it means that columns are in runs.
    """

    columns: int
    size: int
    order: Tensor | None = None
    count: int = 0

    @cached_property
    def index(self) -> NDArray[np.int64] | None:
        """The group of each column, or None if they are runs. Raises CheckpointError for a group that is none."""
        if self.order is None:
            return None
        found = self.order.numbers(0, self.columns).astype(np.int64)
        if (found == -1).any() or np.array_equal(found, np.arange(self.columns) // self.size):
            return None
        wrong = found[(found < 0) | (found >= self.count)]
        if wrong.size:
            raise CheckpointError(
                f"tensor {', '.join(self.order.sources)} names group {wrong[0]}; expected 0 to {self.count - 1}; download the "
                "checkpoint again"
            )
        return found

    def spread(self, numbers: Numbers) -> Numbers:
        """The number of each column, from the numbers of the groups (rows, groups)."""
        if self.index is not None:
            return np.asarray(numbers[:, self.index])
        if numbers.shape[1] == 1:
            return numbers
        return np.repeat(numbers, self.size, axis=1)[:, : self.columns]

    def __str__(self) -> str:
        if self.order is None and self.size >= self.columns:
            return "one scale per row"
        return f"groups of {self.size}" + (" in the order of their activations" if self.order is not None else "")


class Rows(View):
    """A tensor computed by whole rows of its last axis; `shape` may have more than two axes."""

    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return "F32"

    @abstractmethod
    def rows(self, first: int, last: int) -> FloatArray:
        """Rows `first` to `last`, of all leading axes together, as float32 (last - first, columns)."""

    def flat(self, start: int, stop: int) -> FloatArray:
        if stop <= start:
            return np.empty(0, np.float32)
        width = self.columns
        first, last = start // width, -(-stop // width)
        with np.errstate(all="ignore"):  # of scales that are not finite: the encoder names the weights
            found: FloatArray = self.rows(first, last).reshape(-1)
        return found[start - first * width : stop - first * width]


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Rows):
    """(code - zero) · scale + bias in float32, or table[code] · scale.

    Codes are integers of at most 8 bits. With a scale of 16 bits the product is exact in float32; with one of 32 bits it is
    rounded once, as in the libraries. `zero` is one number, or read like the scales; `everywhere` says that one row of scales is
    for all rows.
    """

    shape: tuple[int, ...]
    codes: Reader
    scale: Reader
    groups: Groups
    zero: Reader | int = 0
    add_to_zero: int = 0
    bias: Reader | None = None
    table: FloatArray | None = None
    everywhere: bool = False

    @property
    def parts(self) -> tuple[Tensor, ...]:
        readers = (self.codes, self.scale, self.zero, self.bias)
        order = () if self.groups.order is None else (self.groups.order,)
        return (*(reader.tensor for reader in readers if isinstance(reader, Reader)), *order)

    def rows(self, first: int, last: int) -> FloatArray:
        """Rows `first` to `last` as float32 (last - first, columns)."""
        codes = self.codes.rows(first, last)
        which = (0, 1) if self.everywhere else (first, last)
        values: FloatArray
        if self.table is not None:
            values = self.table[codes]
        else:
            values = codes.astype(np.float32)
            if isinstance(self.zero, Reader):
                values -= self.groups.spread(self.zeros(*which))
            elif self.zero:
                values -= np.float32(self.zero)
        np.multiply(values, self.groups.spread(self.scale.rows(*which)), out=values)
        if self.bias is not None:
            np.add(values, self.groups.spread(self.bias.rows(*which)), out=values)
        return values

    def zeros(self, first: int, last: int) -> FloatArray:
        """The zero points of some rows as float32 (last - first, groups)."""
        assert isinstance(self.zero, Reader)
        zeros: FloatArray = self.zero.rows(first, last).astype(np.float32)
        zeros += np.float32(self.add_to_zero)
        return zeros


def leading(tensor: Tensor) -> int:
    """The number of rows of all leading axes together."""
    return prod(tensor.shape[:-1])
