"""Encoders in C that write ggml's bytes many times faster, by handling many sub-blocks at once; optional.

The C sources are in this folder: `search.h` has each search of ggml-quants.c once, over the vectors of `lanes.h`; one file for
each instruction set includes it. They are built as the extension `_lanes` if the installation has a C compiler, and the best set
that the processor can run is chosen when first used. Before a type is encoded for the first time, data that is sensitive to the
order and the contraction of float operations is encoded by both; if one byte differs, that type is left to ggml, with a warning.

The environment variable TINYQ_KERNELS chooses: `off`, or a set by name (`avx-512`, `avx2`, `sse2`, `neon`).
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache

import numpy as np
from numpy.typing import NDArray

from quant import ggml
from quant.errors import InputError
from quant.types import (
    BF16,
    F16,
    F32,
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
    row_bytes,
)

try:
    from quant.kernels import _lanes
except ImportError:  # a pure wheel, or built without a C compiler
    _lanes = None  # type: ignore[assignment]

SETTING = "TINYQ_KERNELS"
"""The environment variable that chooses the kernels."""

TYPES = (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS)
"""The types that the kernels encode, with and without an importance matrix."""

SOURCES = (F32, F16, BF16)
"""The types that weights can be stored in."""

_PROBE_ROWS, _PROBE_COLUMNS = 32, 2048


def available() -> tuple[str, ...]:
    """The kernels that this processor can run, best first; none without the extension."""
    return () if _lanes is None else tuple(_lanes.names())


def chosen() -> str | None:
    """The kernels in use, or None for ggml. Raises InputError if TINYQ_KERNELS names some that do not run here."""
    return _choose(os.environ.get(SETTING, ""))


@cache
def _choose(wanted: str) -> str | None:
    names = available()
    if not wanted:
        return names[0] if names else None
    plain = wanted.lower().replace("-", "")
    if plain == "off":
        return None
    found = next((name for name in names if name.lower().replace("-", "") == plain), None)
    if found is None:
        raise InputError(f"{SETTING} is {wanted!r}; expected off{''.join(', ' + name for name in names)}")
    return found


def describe() -> str:
    """Which encoder is in use, in words for `tinyq --version`."""
    if _lanes is None:
        return "ggml (this installation has no C kernels)"
    name = chosen()
    return f"kernels for {name}" if name else f"ggml ({SETTING}=off)"


def handles(dtype: TensorType, source: TensorType, weighted: bool) -> bool:
    """Whether `encode` can encode `dtype` from weights stored as `source`, with an importance matrix if `weighted`."""
    name = chosen()
    return name is not None and dtype in TYPES and source in SOURCES and _is_identical(name, dtype, weighted)


def encode(
    dtype: TensorType,
    rows: NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.uint8],
    source: TensorType,
    out: NDArray[np.uint8],
    importance: NDArray[np.float32] | None = None,
) -> float:
    """Encode `rows` (n, k), or their bytes, stored as `source`, to `out` (n, row bytes); all arrays contiguous. Thread-safe.

    `importance` (k,) is that of each column. Returns the largest magnitude of the weights. If it is infinite or NaN, `out` is
    undefined. Only what `handles` says is accepted.
    """
    name = chosen()
    if name is None:
        raise ValueError("there are no kernels; ask `handles` first")
    return encode_by(name, dtype, rows, source, out, importance)[0]


def encode_by(
    name: str,
    dtype: TensorType,
    rows: NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.uint8],
    source: TensorType,
    out: NDArray[np.uint8],
    importance: NDArray[np.float32] | None,
) -> tuple[float, int]:
    """As `encode`, with the kernels called `name` (of `available`); also returns the number of weights that were left to ggml."""
    n = out.shape[0]
    k = out.shape[1] // dtype.block_bytes * dtype.block
    if rows.nbytes != n * k * source.block_bytes or not (rows.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError(f"rows have {rows.nbytes} bytes; expected {n} contiguous rows of {k} weights in {source.name}")
    if importance is not None and (importance.shape != (k,) or importance.dtype != np.float32):
        raise ValueError(f"importance is {importance.dtype}{importance.shape}; expected float32 ({k},)")
    columns = 0 if importance is None else importance.ctypes.data
    bits, left = _lanes.encode(
        name, dtype.ggml_id, source.ggml_id, rows.ctypes.data, n, k, columns, out.ctypes.data, _ggml_address()
    )
    return float(np.uint32(bits).view(np.float32)), left


@cache
def _ggml_address() -> int:
    """The address of `ggml_quantize_chunk`, to which the kernels leave what they cannot do exactly."""
    return ctypes.cast(ggml.library().ggml_quantize_chunk, ctypes.c_void_p).value or 0


@cache
def _is_identical(name: str, dtype: TensorType, weighted: bool) -> bool:
    """Whether the kernels write ggml's bytes for probe data; warns if they do not."""
    rows = probe()
    importance = np.abs(rows[-1]) + np.float32(0.125) if weighted else None
    theirs = np.empty((rows.shape[0], row_bytes(dtype, rows.shape[1])), np.uint8)
    ours = np.empty_like(theirs)
    ggml.quantize_chunk(dtype, rows, theirs, importance)
    encode_by(name, dtype, rows, F32, ours, importance)
    if np.array_equal(ours, theirs):
        return True
    with_matrix = " with an importance matrix" if weighted else ""
    warnings.warn(
        f"the {name} kernels differ from this build of ggml for {dtype.name}{with_matrix}; ggml encodes it, more slowly",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


@cache
def probe() -> NDArray[np.float32]:
    """Weights that show a difference in rounding: bell-shaped, sparse, constant and tiny ones, and half steps of every type.

    Half steps are values half way between two integers of a type's grid, where one unit in the last place decides.
    """
    count = _PROBE_ROWS * _PROBE_COLUMNS
    # Sums of four numbers of a multiplicative congruential sequence (Knuth's multiplier), without loading numpy.random.
    steps = (np.arange(4 * count, dtype=np.uint64) * np.uint64(6364136223846793005)) >> np.uint64(33)
    uniform = (steps.astype(np.float64) / 2.0**31).reshape(4, count)
    rows: NDArray[np.float32] = (
        ((uniform.sum(axis=0) - 2.0) * 0.05).astype(np.float32).reshape(_PROBE_ROWS, _PROBE_COLUMNS)
    )
    blocks = rows[_PROBE_ROWS // 2 :].reshape(-1, 32)
    unit = (0.5 + uniform[0, : len(blocks)]).astype(np.float32)
    for at, reach in enumerate((2, 4, 8, 16, 32, 127)):
        half = np.round(blocks[at::7] * (reach / 0.05)) / np.float32(2)
        half[:, 0], half[:, 1] = -reach, reach - 0.5
        half[1::2] = np.minimum(half[1::2], reach - 1)  # 2 * reach - 1 whole steps, as of the types with a minimum
        blocks[at::7] = half * unit[at::7, None]
    special = blocks[6::7]
    special[::4] = 0.0
    special[1::4] = unit[6::7][1::4, None]
    special[2::4] *= np.float32(1e-12)
    special[3::4, 1:] = 0.0
    return rows
