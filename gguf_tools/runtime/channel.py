"""The frames that `Runtime` and its worker process exchange over a pair of pipes.

A frame is the length of its header (4 bytes, little-endian), the header (JSON), and the raw little-endian bytes of at
most one array, whose dtype and shape the header states. Frames never contain code (no pickle).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from io import RawIOBase
from typing import Any, cast

import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<I")
_MARK = b"\0tinyq: frames follow\n"
"""Comes before the first frame of the worker: libraries that are loaded before its code may have written to the same pipe."""
_MOST_NOISE = 1 << 18
_MOST_HEADER = 1 << 30
_DTYPES = ("<f4", "<i4")

Array = npt.NDArray[Any]


class ChannelClosedError(Exception):
    """The other process closed its end of the pipe, or died, before a whole frame was transferred."""


class NoFrameError(Exception):
    """What came is no frame."""


@dataclass(frozen=True)
class Frame:
    """One request or answer: a header and at most one array (float32 or int32)."""

    header: dict[str, Any]
    array: Array | None = None


def begin(stream: RawIOBase) -> None:
    """Write what the first frame follows. Raises ChannelClosedError if the reader has closed the pipe."""
    try:
        _write_all(stream, memoryview(_MARK))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ChannelClosedError from error


def await_begin(stream: RawIOBase) -> None:
    """Skip what comes before the first frame. Raises ChannelClosedError at the end, NoFrameError if that is too much."""
    last = b""
    for _ in range(_MOST_NOISE):
        last = (last + bytes(_read_exactly(stream, 1)))[-len(_MARK) :]
        if last == _MARK:
            return
    raise NoFrameError(f"{_MOST_NOISE:,} bytes before the first answer")


def write_frame(stream: RawIOBase, header: dict[str, Any], array: Array | None = None) -> None:
    """Write one frame. Raises ChannelClosedError if the reader has closed the pipe."""
    if array is not None:
        little = array.dtype.newbyteorder("<")
        array = np.ascontiguousarray(array, dtype=little)
        header = {**header, "dtype": little.str, "shape": list(array.shape)}
    text = json.dumps(header).encode()
    try:
        _write_all(stream, memoryview(_LENGTH.pack(len(text)) + text))
        if array is not None and array.size:
            _write_all(stream, array.reshape(-1).view(np.uint8).data)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ChannelClosedError from error


def read_frame(stream: RawIOBase) -> Frame:
    """Read one frame. Raises ChannelClosedError at the end of the stream, also inside a frame, and NoFrameError."""
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size))
    if length > _MOST_HEADER:
        raise NoFrameError(f"a header of {length:,} bytes")
    try:
        header = json.loads(bytes(_read_exactly(stream, length)))
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
        if "dtype" not in header:
            return Frame(header)
        if header["dtype"] not in _DTYPES:
            raise ValueError(f"an array of dtype {header['dtype']!r}; expected one of {', '.join(_DTYPES)}")
        shape = tuple(int(size) for size in header["shape"])
        array: Array = np.empty(shape, dtype=header["dtype"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise NoFrameError(str(error)) from error
    if math.prod(shape):
        _fill(stream, array.reshape(-1).view(np.uint8).data)
    return Frame(header, array)


def _write_all(stream: RawIOBase, data: memoryview) -> None:
    while data:
        # A raw stream may write only a part; None would mean a non-blocking pipe, and these are blocking.
        data = data[cast(int, stream.write(data)) :]


def _read_exactly(stream: RawIOBase, count: int) -> bytearray:
    data = bytearray(count)
    _fill(stream, memoryview(data))
    return data


def _fill(stream: RawIOBase, data: memoryview) -> None:
    while data:
        count = stream.readinto(data)
        if not count:
            raise ChannelClosedError
        data = data[count:]
