"""The values that an encoded block can represent: scale and offset of each group of weights, and the quantization levels.

Every block type here represents a weight as `scale · level + offset`, with scale and offset per group (16 or 32 weights) and
a level per weight, which is a small integer or an entry of a table. Source: the `block_*` structures of ggml-common.h and the
`dequantize_row_*` functions of ggml-quants.c (ggml 0.25.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant.types import (
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TensorType,
)

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Scales = tuple[FloatArray, FloatArray]
"""Scale and offset of each group, both of shape (blocks, groups)."""

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""`kvalues_iq4nl`."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The quantization grid of a block type: `levels` in ascending order, for groups of `group` weights with one scale.

    `read` returns scales and offsets of blocks (n, block bytes).
    """

    group: int
    levels: FloatArray
    read: Callable[[ByteArray], Scales]

    @property
    def bounds(self) -> Scales:
        """Lower and upper bounds of the numbers nearest to each level; infinite at the ends, where weights are clipped."""
        middle = (self.levels[1:] + self.levels[:-1]) / 2
        ends = np.array([np.inf], np.float32)
        return np.concatenate([-ends, middle]), np.concatenate([middle, ends])

    def index(self, decoded: FloatArray, scale: FloatArray, offset: FloatArray) -> NDArray[np.intp]:
        """The index in `levels` of each decoded weight, arbitrary where the scale is 0; scale and offset are broadcast."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            level = np.nan_to_num((decoded - offset) / scale, posinf=0.0, neginf=0.0)
        first, last = self.levels[0], self.levels[-1]
        if last - first == len(self.levels) - 1:  # consecutive integers
            return np.asarray(np.clip(np.rint(level) - first, 0, last - first), np.intp)
        return np.asarray(np.searchsorted(self.bounds[0][1:], level.reshape(-1)).reshape(level.shape), np.intp)


def _half(blocks: ByteArray, at: int) -> FloatArray:
    """The F16 number at byte `at` of each block, shape (n, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _plain(blocks: ByteArray) -> Scales:
    scale = _half(blocks, 0)
    return scale, np.zeros_like(scale)


def _with_minimum(blocks: ByteArray) -> Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _q2_k(blocks: ByteArray) -> Scales:
    packed = blocks[:, :16]
    return _half(blocks, 80) * (packed & 15), -_half(blocks, 82) * (packed >> 4)


def _q3_k(blocks: ByteArray) -> Scales:
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = _half(blocks, 108) * ((low | high << 4).astype(np.float32) - 32)
    return scale, np.zeros_like(scale)


def _q4_k(blocks: ByteArray) -> Scales:
    """`get_scale_min_k4`: eight scales and eight minima of six bits."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1)
    minimum = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    return _half(blocks, 0) * scale, -_half(blocks, 2) * minimum


def _q6_k(blocks: ByteArray) -> Scales:
    scale = _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return scale, np.zeros_like(scale)


def _iq4_xs(blocks: ByteArray) -> Scales:
    low, high = blocks[:, 4:8], np.ascontiguousarray(blocks[:, 2:4]).view("<u2")
    four = np.stack([low & 15, low >> 4], axis=2).reshape(len(blocks), 8)
    two = high >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = _half(blocks, 0) * ((four | two << 4).astype(np.float32) - 32)
    return scale, np.zeros_like(scale)


def _whole(first: int, count: int) -> FloatArray:
    return np.arange(first, first + count, dtype=np.float32)


_TABLE = np.array(IQ4_VALUES, np.float32)
_GRIDS = {
    Q8_0: Grid(32, _whole(-128, 256), _plain),
    Q4_0: Grid(32, _whole(-8, 16), _plain),
    Q5_0: Grid(32, _whole(-16, 32), _plain),
    Q4_1: Grid(32, _whole(0, 16), _with_minimum),
    Q5_1: Grid(32, _whole(0, 32), _with_minimum),
    Q2_K: Grid(16, _whole(0, 4), _q2_k),
    Q3_K: Grid(16, _whole(-4, 8), _q3_k),
    Q4_K: Grid(32, _whole(0, 16), _q4_k),
    Q5_K: Grid(32, _whole(0, 32), _q4_k),
    Q6_K: Grid(16, _whole(-32, 64), _q6_k),
    IQ4_NL: Grid(32, _TABLE, _plain),
    IQ4_XS: Grid(32, _TABLE, _iq4_xs),
}


def grid_of(dtype: TensorType) -> Grid | None:
    """The grid of a block type; None for plain types and for types with codebooks."""
    return _GRIDS.get(dtype)
