"""Arrays to the bytes of a ggml type and back: the public functions of `quant`."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from quant.encode import Block, FloatArray, RawArray, RowRange, can_decode, decode_rows, encode_block, row_ranges
from quant.errors import ArgumentError, InputError
from quant.options import writable_type
from quant.types import BF16, F16, F32, TensorType, row_bytes, tensor_type

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
else:
    ArrayLike = Any

T = TypeVar("T")


def quantize(array: ArrayLike, type: str, importance: ArrayLike | None = None, threads: int = 0) -> bytes:
    """The bytes of `array` in a ggml type, as llama.cpp's quantizer writes them: rows of blocks, in numpy's order of axes.

    `array` has float32, float16 or float64 numbers, or bfloat16 ones of the package ml_dtypes, and any number of axes; a row is
    its last axis. `type` is any type that can be written, such as "q4_K" or "Q6_K"; "f16" and "bf16" round. `importance` is an
    importance matrix: the weight of each column, (columns,), or (matrices, columns) for the matrices of a 3-D array. `threads` is
    the number of threads, 0 for one on each core; it does not change the bytes.

    Raises InputError for a type that cannot be written, rows that are not whole blocks of it, weights that are NaN, infinite or
    too large for it, and importances of another shape. Sources: `ggml_quantize_chunk`, `llama_tensor_quantize_impl`.
    """
    dtype = writable_type(_of_type("type", type, str))
    _of_type("threads", threads, int)
    given = _array("array", array)
    rows, source = _rows(given)
    n, k = rows.shape
    out = np.empty((n, row_bytes(dtype, k)), np.uint8)
    shape = given.shape
    matrices = prod(shape[:-2]) if len(shape) > 2 else 1
    columns = None
    if importance is not None:
        columns = _importance(_array("importance", importance).astype(np.float32, copy=False), matrices, k)
    by_matrix = columns is not None and len(columns) > 1

    def encode(part: RowRange) -> None:
        block = Block(
            name=f"of {type}",
            type=dtype,
            rows=rows[part.start : part.stop],
            source=source,
            imatrix=None if columns is None else columns[part.matrix if by_matrix else 0],
            first=part.start,
        )
        encode_block(block, out[part.start : part.stop])

    _spread(encode, shape, by_matrix, threads)
    return out.tobytes()


def dequantize(data: bytes | bytearray | memoryview | NDArray[Any], type: str, shape: tuple[int, ...]) -> FloatArray:
    """The float32 array of `shape` that `data`, rows of a ggml type, stands for; as `quantize` returns it or a GGUF has it.

    Raises InputError for a type that ggml cannot decode, rows that are not whole blocks, and a wrong number of bytes. Source: the
    type's `to_float` (`ggml_get_type_traits`).
    """
    dtype = tensor_type(_of_type("type", type, str))
    if not can_decode(dtype):
        raise InputError(f"type {dtype.name} is not one of weights, so there are no floats to decode")
    if not _of_type("shape", shape, tuple):
        raise InputError("shape is (); expected the lengths of one axis or more")
    if not all(_of_type("shape", length, int) >= 0 for length in shape):
        raise InputError(f"shape is {shape}; expected lengths of at least 0")
    try:
        raw = np.frombuffer(data, np.uint8)
    except TypeError as error:
        raise ArgumentError(f"data is of {data.__class__.__name__}; expected bytes or an array of them") from error
    except ValueError as error:
        raise InputError(f"data cannot be read as bytes ({error}); give them contiguous") from error
    n, k = prod(shape[:-1]), shape[-1]
    if raw.size != n * row_bytes(dtype, k):
        raise InputError(f"data has {raw.size} bytes; expected {n * row_bytes(dtype, k)} for {shape} in {dtype.name}")
    return decode_rows(raw.reshape(n, -1), dtype, k).reshape(shape)


def _of_type(name: str, value: Any, kind: type[T]) -> T:
    """The value of an argument, or ArgumentError if it is not of this type; a bool is no int."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArgumentError(f"{name} is {value!r:.80} ({value.__class__.__name__}); expected {kind.__name__}")
    return value


def _array(name: str, value: Any) -> NDArray[Any]:
    """The argument as an array of numbers, or InputError where numpy makes none of it."""
    try:
        found = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{name} is no array of numbers ({error}); give one of numpy's") from error
    if found.dtype.kind in "OSUc":
        raise InputError(f"{name} has values of {found.dtype}; expected real numbers")
    return found


def _rows(array: NDArray[Any]) -> tuple[RawArray, TensorType]:
    """The array as contiguous rows, in the type that holds its numbers."""
    if not array.ndim:
        raise InputError("array is a single number; expected an array of one axis or more")
    kept: RawArray
    if array.dtype == np.float16 or array.dtype.name == "bfloat16":
        kept = np.ascontiguousarray(array).view(np.uint16)
        source = F16 if array.dtype == np.float16 else BF16
    elif array.dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):  # becomes infinite, which the encoder refuses
            kept, source = np.ascontiguousarray(array, np.float32), F32
    else:
        raise InputError(f"array has numbers of {array.dtype}; expected float32, float16, float64 or bfloat16")
    return kept.reshape(prod(array.shape[:-1]), array.shape[-1]), source


def _importance(given: FloatArray, matrices: int, k: int) -> FloatArray:
    if given.shape not in ((k,), (1, k), (matrices, k)):
        raise InputError(
            f"importance has shape {given.shape}; expected ({k},) or ({matrices}, {k}), one value per column"
        )
    return given.reshape(-1, k)


def _spread(encode: Any, shape: tuple[int, ...], by_matrix: bool, threads: int) -> None:
    """Calls `encode` for all ranges of rows, on several threads if there is enough to do."""
    if threads < 0:
        raise InputError(f"threads is {threads}; expected 0 or more")
    parts = list(row_ranges(shape, by_matrix))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(threads or cores, len(parts))
    if workers < 2:
        for part in parts:
            encode(part)
        return
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(encode, part) for part in parts]:
            done.result()
