"""Lazy tensors that blend and scale others in float64 and round once to the stored type of the source.

A blend of bfloat16 tensors is bfloat16 again, so that surgery before conversion and surgery during conversion give the same
numbers.

Slerp (Shoemake 1985) interpolates each row, the weights of one output, along the arc between the two rows; rows without an
arc (parallel, opposite, or zero) and tensors of one row (norms, biases) are blended linearly. Working row by row makes the
result independent of how a format permutes, splits or joins rows, and needs no pass over the whole tensor.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import InputError
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import Computed, common_dtype
from quant.encode import FloatArray, narrow, widen
from quant.types import BF16
from surgery.algebra import Method

Doubles = NDArray[np.float64]

PIECE = 1 << 20
"""Elements that are read at once."""
SMALLEST_SINE = 1e-6
"""If the sine of the angle between two rows is smaller, slerp and the linear blend differ by less than 1e-12 (relative)."""


class Rounded(Computed):
    """A tensor computed from others: `values` gives float64, and `flat` rounds it once to `dtype`."""

    @abstractmethod
    def values(self, start: int, stop: int) -> Doubles:
        """Elements `start` to `stop` in float64, before rounding."""

    def flat(self, start: int, stop: int) -> FloatArray:
        """Elements `start` to `stop`, rounded; InputError where rounding makes one infinite."""
        # NaN and infinite values of the source are passed on; the writer counts or refuses them.
        with np.errstate(invalid="ignore", over="ignore"):
            values = self.values(start, stop)
        rounded = rounded_to(values, self.dtype)
        finite = np.isfinite(values)
        if not np.isfinite(rounded[finite]).all():
            peak = float(np.abs(values[finite]).max())
            raise InputError(
                f"tensor {', '.join(self.sources[:2])} would reach {peak:g}, too large for {self.dtype}; "
                "give smaller weights or factors"
            )
        return rounded


def exact(tensor: Tensor, start: int, stop: int) -> Doubles:
    """Elements `start` to `stop` in float64; those of a `Rounded` tensor before rounding."""
    if isinstance(tensor, Rounded):
        return tensor.values(start, stop)
    return tensor.flat(start, stop).astype(np.float64)


def rounded_to(values: Doubles, dtype: str) -> FloatArray:
    """The values rounded once to F16 or BF16, or to float32 for all other types; the result is a float32 array."""
    with np.errstate(over="ignore"):
        if dtype.upper() == "F16":
            return values.astype(np.float16).astype(np.float32)
        single = values.astype(np.float32)
    if dtype.upper() != "BF16":
        return single
    # Round to odd first: the last bit of an inexact float32 is set, so the second rounding cannot mistake it for a tie.
    bits = single.view(np.uint32)
    error = values - single.astype(np.float64)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(single)
    outward = np.signbit(error) == np.signbit(single)
    odd = np.where(inexact, np.where(outward, bits + 1, bits - 1), bits).astype(np.uint32)
    return widen(narrow(odd.view(np.float32), BF16), BF16)


@dataclass(frozen=True, eq=False)
class Mean(Rounded):
    """A weighted sum of tensors of the same shape."""

    weighted: tuple[tuple[Tensor, float], ...]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor, _ in self.weighted)

    def values(self, start: int, stop: int) -> Doubles:
        total = np.zeros(stop - start, np.float64)
        for tensor, weight in self.weighted:
            total += weight * exact(tensor, start, stop)
        return total


@dataclass(frozen=True, eq=False)
class Arc(Rounded):
    """Slerp of each row from `first` (t = 0) to `second` (t = 1)."""

    first: Tensor
    second: Tensor
    t: float

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.first, self.second)

    def values(self, start: int, stop: int) -> Doubles:
        """Whole rows are interpolated, then cut to the range: sin((1 - t)·θ)/sin θ · a + sin(t·θ)/sin θ · b (Shoemake 1985)."""
        width = self.columns
        begin, end = start // width * width, -(-stop // width) * width
        a, b = (exact(tensor, begin, end).reshape(-1, width) for tensor in (self.first, self.second))
        sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.einsum("ij,ij->i", a, b) / np.where(sizes > 0, sizes, 1.0)
        angle = np.arccos(np.clip(cosine, -1.0, 1.0))
        sine = np.sin(angle)
        arc = (sizes > 0) & (sine > SMALLEST_SINE)
        divisor = np.where(arc, sine, 1.0)
        left = np.where(arc, np.sin((1.0 - self.t) * angle) / divisor, 1.0 - self.t)
        right = np.where(arc, np.sin(self.t * angle) / divisor, self.t)
        mixed: Doubles = left[:, None] * a + right[:, None] * b
        return mixed.reshape(-1)[start - begin : stop - begin]


@dataclass(frozen=True, eq=False)
class TensorArc(Rounded):
    """Slerp from `first` (t = 0) to `second` (t = 1) with one angle for the whole tensor, or for each matrix of a stack.

    This is what mergekit's method of that name computes for a tensor that holds one matrix. The angle takes a pass over both.
    """

    first: Tensor
    second: Tensor
    t: float

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.first, self.second)

    @cached_property
    def _weights(self) -> dict[int, tuple[float, float]]:
        return {}

    def _factors(self, matrix: int, size: int) -> tuple[float, float]:
        """The weights of both tensors' matrix number `matrix`, of `size` elements, by the angle between them."""
        if matrix not in self._weights:
            sums = np.zeros(3)
            for start in range(matrix * size, (matrix + 1) * size, PIECE):
                stop = min(start + PIECE, (matrix + 1) * size)
                a, b = exact(self.first, start, stop), exact(self.second, start, stop)
                sums += a @ b, a @ a, b @ b
            scale = float(np.sqrt(sums[1] * sums[2]))
            angle = float(np.arccos(np.clip(sums[0] / scale, -1.0, 1.0))) if scale > 0 else 0.0
            sine = float(np.sin(angle))
            arc = np.sin((1.0 - self.t) * angle) / sine, np.sin(self.t * angle) / sine
            self._weights[matrix] = arc if sine > SMALLEST_SINE else (1.0 - self.t, self.t)
        return self._weights[matrix]

    def values(self, start: int, stop: int) -> Doubles:
        size = prod(self.shape[-2:]) if len(self.shape) > 2 else self.size
        out = np.empty(stop - start, np.float64)
        for matrix in range(start // size, -(-stop // size)):
            begin, end = max(start, matrix * size), min(stop, (matrix + 1) * size)
            left, right = self._factors(matrix, size)
            out[begin - start : end - start] = left * exact(self.first, begin, end) + right * exact(
                self.second, begin, end
            )
        return out


@dataclass(frozen=True, eq=False)
class Through(Rounded):
    """Each element mapped by a function of float64 arrays."""

    base: Tensor
    function: Callable[[Doubles], Doubles]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.base,)

    def values(self, start: int, stop: int) -> Doubles:
        return self.function(exact(self.base, start, stop))


def times(tensor: Tensor, factor: float, offset: float = 0.0) -> Tensor:
    """The tensor with x + `offset` multiplied by `factor` for each element x (a weight that the model adds `offset` to)."""
    shift = offset * (factor - 1.0)
    return Through(tensor, lambda values: values * factor + shift, dtype=tensor.dtype)


def mixed(parts: Sequence[tuple[Tensor, float]], method: Method, dtype: str | None = None) -> Tensor:
    """The blend of tensors of the same shape with weights that sum to 1, rounded to `dtype` (by default their own)."""
    tensors = [tensor for tensor, _ in parts]
    dtype = dtype or common_dtype(tensors)
    if method == "slerp-tensor":
        (first, _), (second, t) = parts
        return TensorArc(first, second, t, dtype=dtype)
    if method == "slerp" and prod(tensors[0].shape[:-1]) > 1:
        (first, _), (second, t) = parts
        return Arc(first, second, t, dtype=dtype)
    return Mean(tuple(parts), dtype=dtype)


def mixed_logs(parts: Sequence[tuple[Tensor, float]], dtype: str) -> Tensor:
    """The blend of tensors of decay rates -exp(a), computed on a (A_log), as a blend in the checkpoint is."""
    logs = [(Through(tensor, _log_of_negative), weight) for tensor, weight in parts]
    return Through(Mean(tuple(logs)), lambda values: -np.exp(values), dtype=dtype)


def _log_of_negative(values: Doubles) -> Doubles:
    if not (values < 0).all():
        raise InputError(
            "a decay rate in the file is not negative, so it is not -exp(A_log) and its layer cannot be blended"
        )
    return np.asarray(np.log(-values))
