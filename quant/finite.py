"""Finds NaN and infinity in stored weights, at about the speed of reading them and without decoding what is finite.

Of a block type only the F16 scales are looked at (`TensorType.scales`): all other numbers in a block are integers. Source:
`ggml_validate_row_data` of ggml-quants.c, which looks at the same, but says only whether there is one.
"""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import NDArray

from quant.encode import ByteArray, decode_rows
from quant.types import BF16, F16, F32, MXFP4, NVFP4, TensorType, infinite_scales, tensor_type

_TILE = 1 << 18
"""Bytes that are looked at together: with what is computed of them they fit into a core's L2 cache."""

_F64 = tensor_type("f64")
_INFINITE = {F16: 0x7C00, BF16: 0x7F80}
"""Infinity's bits in the 16-bit formats; greater ones, without the sign, are NaN."""
_ALWAYS_FINITE = {NVFP4, *map(tensor_type, ("i8", "i16", "i32", "i64"))}
"""Integers, and a type whose 8-bit scales have no infinity and whose NaN ggml reads as 0."""
_MXFP4_NAN = 255
_MXFP4_LARGE = 253
"""The smallest exponent with which a weight of 6, the largest, is beyond float32."""


def first_nonfinite(raw: ByteArray, dtype: TensorType) -> tuple[int, float] | None:
    """The first weight that is NaN or infinite in `raw`, contiguous whole blocks: its index and its value, or None.

    Thread-safe.
    """
    if dtype in _ALWAYS_FINITE:
        return None
    flat = raw.reshape(-1)
    step = max(1, _TILE // dtype.block_bytes) * dtype.block_bytes
    for start in range(0, flat.size, step):
        tile = flat[start : start + step]
        found = None if _plainly_finite(tile, dtype) else _search(tile, dtype)
        if found:
            return start // dtype.block_bytes * dtype.block + found[0], found[1]
    return None


def _plainly_finite(tile: ByteArray, dtype: TensorType) -> bool:
    """Whether all is finite, as far as that shows without decoding: False where a block must be decoded to know."""
    if dtype in (F32, _F64):
        return bool(np.isfinite(tile.view(np.float32 if dtype is F32 else np.float64)).all())
    if dtype in _INFINITE:
        return bool((tile.view(np.uint16) & np.uint16(0x7FFF)).max() < _INFINITE[dtype])
    return not _suspects(tile.reshape(-1, dtype.block_bytes), dtype).any()


def _suspects(blocks: ByteArray, dtype: TensorType) -> NDArray[np.bool_]:
    """Which blocks have a scale that is NaN, infinite, or so large that a weight may be infinite."""
    if dtype is MXFP4:
        return np.asarray(blocks[:, 0] >= _MXFP4_LARGE)
    return infinite_scales(blocks, dtype)


def _search(tile: ByteArray, dtype: TensorType) -> tuple[int, float] | None:
    """(index, value) of the first weight of a tile that is not finite, found by decoding the blocks that may hold one."""
    blocks = np.zeros(1, np.int64)
    values: NDArray[np.floating]
    if dtype is _F64:
        values = tile.view(np.float64)[np.newaxis]
    elif dtype.plain:
        values = decode_rows(tile[np.newaxis], dtype, tile.size // dtype.block_bytes)
    else:
        raw = tile.reshape(-1, dtype.block_bytes)
        blocks = np.flatnonzero(_suspects(raw, dtype))
        values = decode_rows(raw[blocks], dtype, dtype.block)
        if dtype is MXFP4:
            values[raw[blocks, 0] == _MXFP4_NAN] = nan
    bad = np.flatnonzero(~np.isfinite(values))
    if not bad.size:
        return None
    row, column = divmod(int(bad[0]), values.shape[1])
    return int(blocks[row]) * dtype.block + column, float(values[row, column])
