"""Encodes rows of weights to a ggml type's bytes and decodes them, on several threads, with bounded memory.

Encoding is done by the kernels of `quant.kernels` where they can, otherwise by ggml's `ggml_quantize_chunk`; both write the same
bytes. They are called for a few rows at a time: the output for a row depends only on that row and its importance, so the result
is the same for all block sizes and numbers of threads. ggml processes a tile that fits into the processor's cache: it is widened,
checked, encoded and measured before the next one is read. The kernels widen and check by themselves, in smaller pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from quant import ggml, kernels
from quant.ahead import map_ahead
from quant.checks import OVERFLOW, REACH, checked_importance, refuse_range, require_finite, require_range
from quant.errors import InputError
from quant.exact import pack_exactly
from quant.narrowing import Narrowing, compare, sum_sq
from quant.types import BF16, F16, F32, TensorType, row_bytes

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
S = TypeVar("S")
T = TypeVar("T")
RawArray = NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.uint8]

# Weights in a tile: 512 KiB as float32, which together with its encoded form fits into a core's L2 cache (1 MiB and up).
_TILE = 1 << 17

_NARROW = (F16, BF16)


def encode_rows(
    rows: FloatArray,
    dtype: TensorType,
    imatrix: FloatArray | None = None,
    out: ByteArray | None = None,
    name: str = "(unnamed)",
) -> ByteArray:
    """Encode float32 `rows` (n, k) to (n, row_bytes(dtype, k)) bytes with `ggml_quantize_chunk`.

    `imatrix` (k,) is the importance of each column, for all rows; the result is written to `out` if given. `name` is the
    tensor's name for messages. Raises InputError if a weight is NaN or infinite, if one is too large for the type's scales,
    or if rows are not whole blocks of the type. Thread-safe.
    """
    return encode_block(Block(name=name, type=dtype, rows=rows, imatrix=imatrix), out).raw


def decode_rows(raw: ByteArray, dtype: TensorType, k: int, out: FloatArray | None = None) -> FloatArray:
    """Decode rows (n, row_bytes(dtype, k)) to (n, k) float32 with the type's `to_float`. Thread-safe."""
    wide = row_bytes(dtype, k)
    if raw.ndim != 2 or raw.shape[1] != wide:
        raise InputError(
            f"the array of {dtype.name} rows has shape {raw.shape}; expected (rows, {wide}) for {k} weights per row"
        )
    target = np.empty((raw.shape[0], k), np.float32) if out is None else out
    _decode(np.ascontiguousarray(raw), dtype, target)
    return target


def can_decode(dtype: TensorType) -> bool:
    """Whether ggml can decode the type to float32: all types except integers and doubles."""
    return dtype is F32 or bool(ggml.traits(dtype).to_float)


def widen(raw: NDArray[np.uint16], dtype: TensorType, out: FloatArray | None = None) -> FloatArray:
    """Convert F16 or BF16 numbers, given as uint16 bits, exactly to float32 of the same shape. Thread-safe."""
    if dtype not in _NARROW:
        raise ValueError(f"dtype is {dtype.name}; widen expects F16 or BF16")
    target = np.empty(raw.shape, np.float32) if out is None else out
    _decode(np.ascontiguousarray(raw), dtype, target)
    return target


def narrow(values: FloatArray, dtype: TensorType, out: NDArray[np.uint16] | None = None) -> NDArray[np.uint16]:
    """Round float32 numbers to F16 or BF16 (round to nearest, ties to even), as uint16 bits of the same shape.

    The inverse of `widen`, by ggml (`ggml_fp32_to_fp16_row`, `ggml_fp32_to_bf16_row_ref`): numbers that are too large become
    infinite, NaN stays NaN. Thread-safe.
    """
    if dtype not in _NARROW:
        raise ValueError(f"dtype is {dtype.name}; narrow expects F16 or BF16")
    bits = np.empty(values.shape, np.uint16) if out is None else out
    if values.size:
        ggml.quantize_chunk(
            dtype, np.ascontiguousarray(values).reshape(1, -1), bits.view(np.uint8).reshape(1, -1), None
        )
    return bits


def narrowing_loss(
    rows: FloatArray, dtype: TensorType, name: str = "(unnamed)", *, allow_nonfinite: bool = False
) -> Narrowing:
    """The changes by storing float32 `rows` (any shape) as F16 or BF16; the rounded numbers are discarded.

    Raises InputError if a weight is NaN or infinite, unless `allow_nonfinite`: such a weight counts as unchanged then.
    """
    if dtype not in _NARROW:
        raise ValueError(f"dtype is {dtype.name}; narrowing_loss expects F16 or BF16")
    flat = rows.reshape(-1)
    scratch = np.empty(min(_TILE, flat.size), np.uint16)
    total = Narrowing()
    for start in range(0, flat.size, _TILE):
        tile = np.ascontiguousarray(flat[start : start + _TILE])
        if not allow_nonfinite:
            require_finite(tile.reshape(1, -1), name, start)
        if dtype is BF16 and not np.bitwise_or.reduce(tile.view(np.uint32)) & 0xFFFF:
            total += Narrowing(
                weights=tile.size, sum_sq=sum_sq(tile[np.isfinite(tile)] if allow_nonfinite else tile)
            )  # the rows come from BF16, so narrowing to BF16 changes nothing
            continue
        total += compare(tile, widen(narrow(tile, dtype, scratch[: tile.size]), dtype))
    return total


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Some rows of one tensor, and the type to encode them in.

    `rows` is an array (n, k) of float32, or an array in the stored type `source`: (n, k) uint16 for F16 or BF16, (n,
    row_bytes(source, k)) uint8 for any type. It may also be a function that returns such an array: the encoding thread calls
    it, so that reading is distributed over threads too. `imatrix` (k,) applies to all rows, so a block must not contain rows of
    two experts with separate importances (`row_ranges`). `first` is the number of the first row in its tensor. The changes by
    encoding are measured for the first `measure` rows. With `allow_nonfinite`, F32, F16 and BF16 keep NaN and infinity, and a
    weight beyond the type's range becomes infinite; blocks that are copied (`type` is `source`) stay as they are. `exact` blocks
    are packed without a change of any weight (`quant.exact`), not encoded.
    """

    name: str
    type: TensorType
    rows: RawArray | Callable[[], RawArray]
    source: TensorType = F32
    imatrix: FloatArray | None = None
    first: int = 0
    measure: int = 0
    allow_nonfinite: bool = False
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Encoded:
    """A block's bytes (n, row bytes), and the changes by encoding if they were measured.

    With `allow_nonfinite`, `nonfinite` counts the encoded weights that are NaN or infinite, `overflowed` those of them that
    were finite before.
    """

    name: str
    type: TensorType
    raw: ByteArray
    loss: Narrowing | None
    nonfinite: int = 0
    overflowed: int = 0


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop` of a tensor viewed as (rows, k); with `by_matrix` all are in the matrix (expert) `matrix`."""

    start: int
    stop: int
    matrix: int


def row_ranges(shape: tuple[int, ...], by_matrix: bool, weights: int = 1 << 18) -> Iterator[RowRange]:
    """Splits a tensor of `shape` (numpy order) into ranges of whole rows, of about `weights` weights at most.

    With `by_matrix` no range contains rows of two matrices (experts) of a 3-D tensor, as required for an importance matrix.
    """
    total = int(np.prod(shape[:-1], dtype=np.int64))
    per_matrix = shape[-2] if len(shape) > 1 else 1
    step = max(1, weights // max(1, shape[-1]))
    start = 0
    while start < total:
        end = start - start % per_matrix + per_matrix if by_matrix else total
        stop = min(start + step, end)
        yield RowRange(start, stop, start // per_matrix)
        start = stop


def encode_block(block: Block, out: ByteArray | None = None) -> Encoded:
    """Encodes one block in the calling thread, into `out` (n, row bytes) if given. Errors as `encode_rows`."""
    dtype = block.type
    if not dtype.encodes and dtype is not block.source:
        raise InputError(
            f"tensor {block.name} cannot be written as {dtype.name}, which tinyq can only read; choose another type"
        )
    rows = block.rows() if callable(block.rows) else block.rows
    n, k = _shape(block, rows)
    raw = np.empty((n, row_bytes(dtype, k)), np.uint8) if out is None else out
    if raw.shape != (n, row_bytes(dtype, k)) or raw.dtype != np.uint8 or not raw.flags.c_contiguous:
        raise ValueError(f"out is {raw.dtype}{raw.shape}; expected contiguous uint8 ({n}, {row_bytes(dtype, k)})")
    if block.exact:
        return _packed(block, rows, raw)
    imatrix = checked_importance(block.imatrix, k, dtype, block.source, block.name)
    loss = Narrowing() if block.measure else None
    lax = block.allow_nonfinite and (dtype in OVERFLOW or dtype is block.source)
    direct = dtype is not block.source and not lax and kernels.handles(dtype, block.source, imatrix is not None)
    step = max(1, n if direct else _TILE // max(1, k))
    scratch = None if block.source is F32 else np.empty((min(step, n, block.measure if direct else n), k), np.float32)
    nonfinite = overflowed = 0
    for start in range(0, n if k else 0, step):
        part = cast(RawArray, np.ascontiguousarray(rows[start : start + step]))
        target = raw[start : start + step]
        few = min(len(part), max(0, block.measure - start))
        if direct:
            _encode_directly(block, part, target, imatrix, block.first + start)
            if loss is not None:
                loss += compare(_as_float(part[:few], block.source, k, scratch), decode_rows(target[:few], dtype, k))
            continue
        tile = _as_float(part, block.source, k, scratch)
        peak = 0.0 if lax else require_finite(tile, block.name, (block.first + start) * k)
        if peak >= REACH and not dtype.plain:  # before ggml, some of whose encoders end the process
            refuse_range(dtype, peak, block.name, None)
        if dtype is block.source:
            target[:] = part.view(np.uint8).reshape(target.shape)
        else:
            _quantize(dtype, tile, target, imatrix)
            if not lax:
                require_range(target, dtype, peak, block.name, tile)
        after = decode_rows(target if lax else target[:few], dtype, k) if lax or few else None
        if lax and after is not None:
            found = after.size - int(np.count_nonzero(np.isfinite(after)))
            nonfinite += found
            overflowed += found - (tile.size - int(np.count_nonzero(np.isfinite(tile)))) if found else 0
        if loss is not None and after is not None and few:
            loss += compare(tile[:few], after[:few])
    return Encoded(block.name, dtype, raw, loss, nonfinite, overflowed)


def _packed(block: Block, rows: RawArray, raw: ByteArray) -> Encoded:
    """The block packed into `raw` without a change. Raises InputError if a weight does not fit."""
    n, k = len(raw), raw.shape[1] // block.type.block_bytes * block.type.block
    floats = _as_float(np.ascontiguousarray(rows), block.source, k, np.empty((n, k), np.float32))  # type: ignore[arg-type]
    found = pack_exactly(floats, block.type)
    if found is None:
        last = block.first + n - 1
        raise InputError(
            f"tensor {block.name} has weights that {block.type.name} does not hold exactly, in rows {block.first} to {last}; "
            "name a type with --type"
        )
    raw[:] = found
    measured = min(n, block.measure)
    loss = Narrowing(weights=measured * k, sum_sq=sum_sq(floats[:measured].reshape(-1))) if measured else None
    return Encoded(block.name, block.type, raw, loss)


class Encoder:
    """A pool of threads that encodes blocks in order, so that reading, encoding and writing overlap.

    At most `threads + ahead` blocks are in memory, including the one being written: with blocks of 2^18 weights about 2 MB
    per block. A context manager; on exit, also after an error or Ctrl-C, it waits for the blocks that are being encoded,
    drops the others, and ends the threads.
    """

    def __init__(self, threads: int, ahead: int | None = None) -> None:
        if threads < 1:
            raise InputError(f"threads is {threads}; expected 1 or more")
        self._window = threads + (threads + 1 if ahead is None else ahead)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tinyq-encode")

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Run `function` in one of the pool's threads, beside the encoding; dropped on exit if it has not begun."""
        return self._pool.submit(function, *arguments)

    def encode(self, blocks: Iterable[Block]) -> Iterator[Encoded]:
        """The encoded blocks, in order. `blocks` is iterated in the caller's thread, a bounded number of blocks ahead.

        The first error (of encoding, reading, or the iterable) is raised here; the blocks after it are dropped.
        """
        return self.map(encode_block, blocks)

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """The same for any function of an item, which runs in the pool's threads."""
        return map_ahead(self._pool, self._window, function, items)


def _shape(block: Block, rows: RawArray) -> tuple[int, int]:
    """(n, k) of a block's rows; ValueError if their dtype or shape does not match `source`."""
    fits = {np.dtype(np.float32): block.source is F32, np.dtype(np.uint16): block.source in _NARROW}
    if rows.ndim != 2 or not fits.get(rows.dtype, rows.dtype == np.uint8):
        raise ValueError(
            f"tensor {block.name}: rows are {rows.dtype} of shape {rows.shape}; expected a 2-D array of {block.source.name}"
        )
    n, wide = rows.shape
    if rows.dtype != np.uint8:
        return n, wide
    if wide % block.source.block_bytes:
        raise ValueError(f"tensor {block.name}: rows have {wide} bytes; expected whole blocks of {block.source.name}")
    return n, wide // block.source.block_bytes * block.source.block


def _encode_directly(block: Block, part: RawArray, target: ByteArray, imatrix: FloatArray | None, before: int) -> None:
    """Encodes rows in the type that they are stored in, with the kernels; `before` is the rows before them in the tensor."""
    peak = kernels.encode(block.type, part, block.source, target, imatrix)
    if not np.isfinite(peak):
        k = target.shape[1] // block.type.block_bytes * block.type.block
        require_finite(_as_float(part, block.source, k, np.empty((len(part), k), np.float32)), block.name, before * k)
    require_range(target, block.type, peak, block.name)


def _quantize(dtype: TensorType, tile: FloatArray, target: ByteArray, imatrix: FloatArray | None) -> None:
    if kernels.handles(dtype, F32, imatrix is not None):
        kernels.encode(dtype, tile, F32, target, imatrix)
    else:
        ggml.quantize_chunk(dtype, tile, target, imatrix)


def _as_float(part: RawArray, source: TensorType, k: int, scratch: FloatArray | None) -> FloatArray:
    if scratch is None:
        return part.view(np.float32)
    tile = scratch[: part.shape[0]]
    _decode(part, source, tile)
    return tile


def _decode(raw: RawArray, dtype: TensorType, out: FloatArray) -> None:
    """Decodes contiguous `raw` into `out`, which has as many elements as `raw` has weights."""
    if (
        not out.flags.c_contiguous
        or out.dtype != np.float32
        or out.size * dtype.block_bytes != raw.nbytes * dtype.block
    ):
        raise ValueError(
            f"out is {out.dtype}{out.shape}; expected contiguous float32 for {raw.nbytes} bytes of {dtype.name}"
        )
    if dtype is F32:
        out.reshape(-1)[:] = raw.reshape(-1).view(np.float32)
    else:
        ggml.to_float(dtype, raw.view(np.uint8), out)
