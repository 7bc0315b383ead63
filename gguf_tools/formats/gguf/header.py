"""Reading and packing the header of a GGUF file.

Source: the GGUF specification (`docs/gguf.md` of ggml) and `gguf_init_from_file` of llama.cpp, which also wants tensor
offsets contiguous and in the order of the entries. Every count, length and offset is checked against the size of the
file before anything is allocated for it, because a file may be truncated or hostile.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.journal import recover
from quant.types import TensorType, row_bytes, type_of_id

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
RESERVE_BYTES = 512
"""Spaces that a file keeps in its metadata, so that surgery in place has room to record what it did."""
MAX_DIMENSIONS = 4
MAX_NAME = 63
"""ggml keeps 64 bytes for a tensor's name, the closing zero included (`GGML_MAX_NAME`)."""


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


_FORMATS: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class Field:
    """One metadata value with its type; `element` is the type of the items where `type` is ARRAY."""

    type: ValueType
    value: Any
    element: ValueType | None = None


Metadata = dict[str, Field]


def u32(value: int) -> Field:
    """An unsigned 32-bit number, which is what llama.cpp reads nearly all counts as."""
    return Field(ValueType.UINT32, int(value))


def u64(value: int) -> Field:
    """An unsigned 64-bit number."""
    return Field(ValueType.UINT64, int(value))


def i32(value: int) -> Field:
    """A signed 32-bit number."""
    return Field(ValueType.INT32, int(value))


def f32(value: float) -> Field:
    """A 32-bit float."""
    return Field(ValueType.FLOAT32, float(value))


def boolean(value: bool) -> Field:
    """A truth value (one byte)."""
    return Field(ValueType.BOOL, bool(value))


def string(value: str) -> Field:
    """A UTF-8 string."""
    return Field(ValueType.STRING, value)


def array(element: ValueType, values: Sequence[Any]) -> Field:
    """An array of `element`."""
    return Field(ValueType.ARRAY, tuple(values), element)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's line in the header.

    `shape` is in numpy's order (the reverse of ggml's `ne`), so its last axis is the row; `offset` counts bytes from the
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


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """All of a GGUF file except its tensors' data; `data_offset` is where that starts in the file."""

    path: Path
    metadata: Metadata
    tensors: tuple[TensorEntry, ...]
    data_offset: int
    alignment: int

    def get(self, key: str, default: Any = None) -> Any:
        """The bare value of `key`, or `default`."""
        field = self.metadata.get(key)
        return default if field is None else field.value

    @property
    def architecture(self) -> str:
        """`general.architecture`, or an error that says it is missing."""
        value = self.get("general.architecture")
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path}: general.architecture is missing; llama.cpp needs it to run the file")
        return value


def tensor_bytes(kind: TensorType, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this type and shape (numpy order) takes; InputError if a row is not whole blocks."""
    return prod(shape[:-1]) * row_bytes(kind, shape[-1])


def align(offset: int, alignment: int) -> int:
    """`offset` rounded up to a multiple of `alignment`."""
    return -(-offset // alignment) * alignment


class _Reader:
    """Reads values at the head of a file, and refuses to go past its end."""

    def __init__(self, stream: BinaryIO, path: Path, size: int) -> None:
        self.stream = stream
        self.path = path
        self.size = size
        self.position = 0

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}; the file is truncated or corrupt, fetch or write it again")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            left = self.size - self.position
            raise self.fail(f"{what} needs {count} bytes at offset {self.position}, but only {left} are left")
        data = self.stream.read(count)
        if len(data) != count:
            raise self.fail(f"{what} could not be read at offset {self.position}")
        self.position += count
        return data

    def number(self, kind: ValueType, what: str) -> Any:
        fmt = "<" + _FORMATS[kind]
        return struct.unpack(fmt, self.take(struct.calcsize(fmt), what))[0]

    def text(self, what: str) -> str:
        length = self.number(ValueType.UINT64, f"the length of {what}")
        return self.take(length, what).decode("utf-8", errors="surrogateescape")

    def kind(self, what: str) -> ValueType:
        number = self.number(ValueType.UINT32, f"the type of {what}")
        if number not in ValueType._value2member_map_:
            raise self.fail(f"{what} has type {number}, which GGUF does not define")
        return ValueType(number)

    def value(self, kind: ValueType, what: str) -> Field:
        if kind is ValueType.STRING:
            return Field(kind, self.text(what))
        if kind is not ValueType.ARRAY:
            return Field(kind, self.number(kind, what))
        element = self.kind(f"the items of {what}")
        count = self.number(ValueType.UINT64, f"the length of {what}")
        if element is ValueType.ARRAY:
            raise self.fail(f"{what} is an array of arrays, which llama.cpp does not read")
        if element is ValueType.STRING:
            if count > (self.size - self.position) // 8:
                raise self.fail(f"{what} claims {count} strings, more than the file can hold")
            return Field(kind, tuple(self.text(what) for _ in range(count)), element)
        width = struct.calcsize(_FORMATS[element])
        data = self.take(count * width, what)
        dtype = np.dtype("?" if element is ValueType.BOOL else "<" + _FORMATS[element])
        return Field(kind, tuple(np.frombuffer(data, dtype).tolist()), element)


def is_gguf(path: Path) -> bool:
    """Whether the file starts with GGUF's magic."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GGUFHeader:
    """Read a GGUF file's metadata and tensor entries.

    Raises CheckpointError, naming the file and the place, where the file is truncated, corrupt, of another version or
    byte order, or has tensors that overlap, lie outside it or are of a type that ggml does not know. A change in place
    that was interrupted is carried through first.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: cannot be read: it is not a regular file; give a GGUF file")
    recover(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            return _read(_Reader(stream, path, size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _read(reader: _Reader) -> GGUFHeader:
    path = reader.path
    magic = reader.take(4, "the magic")
    if magic != MAGIC:
        raise CheckpointError(f"{path}: starts with {magic!r}, not with {MAGIC!r}; it is not a GGUF file")
    version = reader.number(ValueType.UINT32, "the version")
    if version not in (2, 3):
        hint = "; it is big-endian" if int.from_bytes(struct.pack("<I", version), "big") in (2, 3) else ""
        raise CheckpointError(f"{path}: GGUF version {version} found, 2 or 3 expected{hint}; write it anew")
    n_tensors = reader.number(ValueType.UINT64, "the tensor count")
    n_fields = reader.number(ValueType.UINT64, "the metadata count")
    room = reader.size - reader.position
    if n_fields > room // 13 or n_tensors > room // 24:
        raise reader.fail(
            f"{n_tensors} tensors and {n_fields} metadata values are claimed, more than the file can hold"
        )
    metadata: Metadata = {}
    for _ in range(n_fields):
        key = reader.text("a metadata key")
        if key in metadata:
            raise reader.fail(f"the metadata key {key} appears twice")
        metadata[key] = reader.value(reader.kind(key), key)
    alignment = metadata.get(ALIGNMENT_KEY, u32(DEFAULT_ALIGNMENT)).value
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise reader.fail(f"{ALIGNMENT_KEY} is {alignment!r}, a power of two expected")
    entries = [_entry(reader) for _ in range(n_tensors)]
    data_offset = align(reader.position, alignment)
    _check_places(reader, entries, data_offset, alignment)
    return GGUFHeader(
        path=path, metadata=metadata, tensors=tuple(entries), data_offset=data_offset, alignment=alignment
    )


def _entry(reader: _Reader) -> TensorEntry:
    name = reader.text("a tensor's name")
    dimensions = reader.number(ValueType.UINT32, f"the rank of {name}")
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise reader.fail(f"tensor {name} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} expected")
    shape = tuple(reader.number(ValueType.UINT64, f"the shape of {name}") for _ in range(dimensions))[::-1]
    number = reader.number(ValueType.UINT32, f"the type of {name}")
    offset = reader.number(ValueType.UINT64, f"the offset of {name}")
    try:
        kind = type_of_id(number)
    except InputError as error:
        raise reader.fail(f"tensor {name} has type {number}, which this ggml does not know") from error
    if min(shape) < 1 or shape[-1] % kind.block:
        raise reader.fail(f"tensor {name} has shape {shape}, which {kind} with blocks of {kind.block} cannot have")
    return TensorEntry(name, shape, kind, offset)


def _check_places(reader: _Reader, entries: Sequence[TensorEntry], data_offset: int, alignment: int) -> None:
    expected = 0
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise reader.fail(f"the tensor {entry.name} appears twice")
        seen.add(entry.name)
        if entry.offset != expected:
            raise reader.fail(f"tensor {entry.name} starts at {entry.offset}, {expected} expected")
        expected = align(entry.offset + entry.nbytes, alignment)
        end = data_offset + entry.offset + entry.nbytes
        if end > reader.size:
            raise reader.fail(f"tensor {entry.name} ends at byte {end}, but the file has {reader.size}")


def pack_header(metadata: Mapping[str, Field], tensors: Sequence[TensorEntry], alignment: int) -> bytes:
    """The bytes of a GGUF header (version 3, little-endian), padded to where the data starts.

    The entries' offsets are written as they are; `place` computes them.
    """
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, field in metadata.items():
        out += _packed_text(key) + struct.pack("<I", field.type)
        out += _packed_value(field)
    for entry in tensors:
        out += _packed_text(entry.name) + struct.pack("<I", len(entry.shape))
        out += struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        out += struct.pack("<IQ", entry.type.ggml_id, entry.offset)
    return bytes(out) + b"\0" * (align(len(out), alignment) - len(out))


def _packed_text(text: str) -> bytes:
    try:
        data = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        # JSON and YAML can spell halves of surrogate pairs, which no UTF-8 has.
        data = text.encode("utf-8", errors="backslashreplace")
    return struct.pack("<Q", len(data)) + data


def _packed_value(field: Field) -> bytes:
    if field.type is ValueType.STRING:
        return _packed_text(field.value)
    if field.type is not ValueType.ARRAY:
        return struct.pack("<" + _FORMATS[field.type], field.value)
    assert field.element is not None
    head = struct.pack("<IQ", field.element, len(field.value))
    if field.element is ValueType.STRING:
        return head + b"".join(map(_packed_text, field.value))
    return head + struct.pack(f"<{len(field.value)}{_FORMATS[field.element]}", *field.value)


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
