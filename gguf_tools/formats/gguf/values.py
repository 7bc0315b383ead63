"""Metadata values and tensor entries of a GGUF header, and their bytes.

Source: the GGUF specification (`docs/gguf.md` of ggml).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from quant.types import TensorType, row_bytes

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_NAME = 63
"""ggml keeps 64 bytes for a tensor's name, the closing zero included (`GGML_MAX_NAME`)."""

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class ValueType(IntEnum):
    """The type numbers of metadata values in a GGUF file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBERS: dict[ValueType, struct.Struct] = {
    kind: struct.Struct("<" + letter)
    for kind, letter in zip(ValueType, "BbHhIif?  Qqd", strict=True)
    if kind not in (ValueType.STRING, ValueType.ARRAY)
}
"""How a number or flag of each type is packed; strings and arrays, which have a length prefix, are not in it."""


@dataclass(frozen=True, eq=False)
class Field:
    """One metadata value with its type; if `type` is ARRAY, `value` is a tuple and `element` the type of its items."""

    type: ValueType
    value: Any
    element: ValueType | None = None

    def __eq__(self, other: object) -> bool:
        """Equal in type and value; a value not decoded yet is decoded for the comparison."""
        if not isinstance(other, Field):
            return NotImplemented
        return (self.type, self.element) == (other.type, other.element) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash((self.type, self.element, self.value))

    def packed(self) -> bytes | memoryview:
        """The value's bytes as they stand in a header after the key and the type number."""
        if self.type is ValueType.STRING:
            return packed_text(self.value)
        if self.type is not ValueType.ARRAY:
            return NUMBERS[self.type].pack(self.value)
        return self._packed_array

    @cached_property
    def _packed_array(self) -> bytes:
        """An array's bytes: kept, because a vocabulary is packed for the file's size, for its header, and again at the end."""
        assert self.element is not None
        head = struct.pack("<IQ", self.element, len(self.value))
        if self.element is ValueType.STRING:
            return head + b"".join(map(packed_text, self.value))
        letter = NUMBERS[self.element].format[1:]
        return head + struct.pack(f"<{len(self.value)}{letter}", *self.value)


class StoredField(Field):
    """A value read from a file, decoded on first access; `packed` returns its bytes unchanged.

    `data` is the header, whose lengths have been checked; the value is at bytes `start` to `stop`.
    """

    def __init__(self, type: ValueType, data: bytearray, start: int, stop: int) -> None:
        element = ValueType(U32.unpack_from(data, start)[0]) if type is ValueType.ARRAY else None
        vars(self).update(type=type, element=element, _data=data, _start=start, _stop=stop)

    @cached_property
    def value(self) -> Any:
        """The decoded value: int, float, bool or str, or a tuple of them for an array."""
        data, start = self._data, self._start
        if self.type is ValueType.STRING:
            return _texts(data, start, 1)[0]
        if self.type is not ValueType.ARRAY:
            return NUMBERS[self.type].unpack_from(data, start)[0]
        assert self.element is not None
        count = U64.unpack_from(data, start + 4)[0]
        if self.element is ValueType.STRING:
            return tuple(_texts(data, start + 12, count))
        dtype = np.dtype(NUMBERS[self.element].format)
        return tuple(np.frombuffer(data, dtype, count, start + 12).tolist())

    def packed(self) -> bytes | memoryview:
        return memoryview(self._data)[self._start : self._stop]

    _data: bytearray
    _start: int
    _stop: int


def _texts(data: bytearray, position: int, count: int) -> list[str]:
    """`count` consecutive length-prefixed strings from `position`; bytes that are not UTF-8 become surrogate escapes."""
    found = []
    length = U64.unpack_from
    for _ in range(count):
        start = position + 8
        position = start + length(data, position)[0]
        found.append(data[start:position].decode("utf-8", "surrogateescape"))
    return found


Metadata = dict[str, Field]


def u32(value: int) -> Field:
    """An unsigned 32-bit integer, the type that llama.cpp expects for nearly all counts."""
    return Field(ValueType.UINT32, int(value))


def u64(value: int) -> Field:
    """An unsigned 64-bit integer."""
    return Field(ValueType.UINT64, int(value))


def i32(value: int) -> Field:
    """A signed 32-bit integer."""
    return Field(ValueType.INT32, int(value))


def f32(value: float) -> Field:
    """A 32-bit float."""
    return Field(ValueType.FLOAT32, float(value))


def boolean(value: bool) -> Field:
    """A bool (one byte)."""
    return Field(ValueType.BOOL, bool(value))


def string(value: str) -> Field:
    """A UTF-8 string."""
    return Field(ValueType.STRING, value)


def array(element: ValueType, values: Sequence[Any]) -> Field:
    """An array whose items have type `element`."""
    return Field(ValueType.ARRAY, tuple(values), element)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's entry in the header.

    `shape` is in numpy's order (the reverse of ggml's `ne`), so a row runs along its last axis; `offset` is in bytes from the
    start of the data section.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data, without padding."""
        return tensor_bytes(self.type, self.shape)


def tensor_bytes(kind: TensorType, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this type and shape (numpy order), without padding.

    Raises InputError if the row length is not a multiple of the type's block size.
    """
    return prod(shape[:-1]) * row_bytes(kind, shape[-1])


def align(offset: int, alignment: int) -> int:
    """`offset` rounded up to a multiple of `alignment`."""
    return -(-offset // alignment) * alignment


def packed_text(text: str) -> bytes:
    """A string's bytes as they stand in a header: its length in bytes (uint64), then UTF-8."""
    try:
        data = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        # JSON and YAML can contain lone surrogates, which UTF-8 cannot encode.
        data = text.encode("utf-8", errors="backslashreplace")
    return U64.pack(len(data)) + data


def pack_header(metadata: Mapping[str, Field], tensors: Sequence[TensorEntry], alignment: int) -> bytes:
    """The bytes of a GGUF header (version 3, little-endian), padded to `alignment`; the data section follows.

    The entries' offsets are written as given; `place` computes them.
    """
    parts: list[bytes | memoryview] = [MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, field in metadata.items():
        parts += [packed_text(key), U32.pack(field.type), field.packed()]
    for entry in tensors:
        parts.append(packed_text(entry.name))
        parts.append(struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape)))
        parts.append(struct.pack("<IQ", entry.type.ggml_id, entry.offset))
    parts.append(b"\0" * (-sum(map(len, parts)) % alignment))
    return b"".join(parts)


def place(
    tensors: Sequence[tuple[str, tuple[int, ...], TensorType]], alignment: int = DEFAULT_ALIGNMENT
) -> tuple[tuple[TensorEntry, ...], int]:
    """Entries with contiguous aligned offsets for (name, shape, type) in order, and the data section's length."""
    entries: list[TensorEntry] = []
    offset = 0
    for name, shape, kind in tensors:
        entry = TensorEntry(name, shape, kind, offset)
        entries.append(entry)
        offset = align(offset + entry.nbytes, alignment)
    return tuple(entries), offset
