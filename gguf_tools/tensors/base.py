"""Lazy tensors: any range of elements can be read without loading the whole tensor.

A tensor is read in flat pieces (`flat(start, stop)`, elements in row-major order, widened exactly to float32), so that
peak memory depends on the size of a piece and not on that of the tensor. Views (rows selected, tensors joined, elements
mapped) are lazy too and keep the names of the source tensors that they are read from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from quant.encode import FloatArray, RawArray
from quant.types import BF16, F16, F32, TensorType

NARROW = (F16, BF16)
"""The types that `Selection` views copy without widening: two bytes per element."""


class Tensor(ABC):
    """A lazy tensor: `shape` (row-major), `dtype` (as the source stores it: F64, F32, F16, BF16 …) and its `sources`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Names of the tensors in the source that this one is read from."""

    @abstractmethod
    def flat(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop` in row-major order, as a float32 array of length stop - start."""

    def numbers(self, start: int, stop: int) -> NDArray[np.float64]:
        """Elements `start` to `stop` as float64; unlike `flat` also for integer and boolean tensors."""
        return self.flat(start, stop).astype(np.float64)

    @property
    def stored(self) -> TensorType:
        """The type of the elements that `raw` returns: the source's own for plain views of it, else F32."""
        return F32

    def raw(self, start: int, stop: int) -> RawArray:
        """Elements `start` to `stop` in the type `stored`, as a one-dimensional array: float32 for F32, uint16 for F16 and
        BF16, uint8 for all others. `start` and `stop` are multiples of that type's block size."""
        return self.flat(start, stop)

    def stored_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of elements `start` to `stop` as the source stores them, whatever its type; only for tensors of a file.

        Raises TypeError for tensors that are not stored anywhere.
        """
        raise TypeError(f"{', '.join(self.sources)} is computed, so it has no stored bytes")

    @property
    def is_numeric(self) -> bool:
        """Whether `flat` has the elements: not of a GGUF's integers and doubles, which llama.cpp only copies."""
        return True

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Length of a row (the last axis)."""
        return self.shape[-1]

    def array(self) -> FloatArray:
        """The whole tensor in memory, in its shape."""
        return self.flat(0, self.size).reshape(self.shape)


@dataclass(frozen=True)
class InMemory(Tensor):
    """A tensor held in memory."""

    values: FloatArray
    names: tuple[str, ...] = ()
    dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.values.shape

    @property
    def sources(self) -> tuple[str, ...]:
        return self.names

    def flat(self, start: int, stop: int) -> FloatArray:
        return np.asarray(self.values.reshape(-1)[start:stop], np.float32)


@dataclass(frozen=True)
class Filled(Tensor):
    """A constant tensor; uses no memory for its elements."""

    shape: tuple[int, ...]
    value: float = 0.0
    dtype: str = "F32"

    @property
    def sources(self) -> tuple[str, ...]:
        return ()

    def flat(self, start: int, stop: int) -> FloatArray:
        return np.full(stop - start, self.value, np.float32)


def same_values(a: Tensor, b: Tensor, piece: int = 1 << 20) -> bool:
    """Whether two tensors have the same shape and elements, compared in pieces of `piece` elements."""
    if a.shape != b.shape:
        return False
    pieces = ((start, min(start + piece, a.size)) for start in range(0, a.size, piece))
    return all(np.array_equal(a.flat(*ends), b.flat(*ends)) for ends in pieces)
