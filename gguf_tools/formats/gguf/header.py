"""Reading the header of a GGUF file: one scan records the offset of each value, and a value is decoded on first access.

So a vocabulary of a hundred thousand strings is skipped, kept as bytes and written back as bytes unless it is read.
Source: the GGUF specification (`docs/gguf.md` of ggml) and `gguf_init_from_file` of llama.cpp, which also requires
tensor offsets to be contiguous and in the order of the entries. Every count, length and offset is checked against the size
of the file before anything is read or allocated for it, because a file may be truncated or hostile.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, InputError, exhausted
from gguf_tools.formats.gguf.values import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_NAME,
    NUMBERS,
    U32,
    U64,
    Field,
    Metadata,
    StoredField,
    TensorEntry,
    ValueType,
    align,
    array,
    boolean,
    f32,
    i32,
    pack_header,
    place,
    string,
    tensor_bytes,
    u32,
    u64,
)
from gguf_tools.formats.journal import refuse_interrupted
from gguf_tools.formats.remote import file_size, open_raw, remote_at
from gguf_tools.text import shortened
from quant.types import type_of_id

__all__ = [
    "ALIGNMENT_KEY",
    "DEFAULT_ALIGNMENT",
    "MAX_DIMENSIONS",
    "MAX_NAME",
    "RESERVE_BYTES",
    "Field",
    "GGUFHeader",
    "Metadata",
    "TensorEntry",
    "ValueType",
    "align",
    "array",
    "boolean",
    "f32",
    "i32",
    "is_gguf",
    "pack_header",
    "place",
    "read_header",
    "string",
    "tensor_bytes",
    "u32",
    "u64",
]

ALIGNMENT_KEY = "general.alignment"
RESERVE_BYTES = 512
"""Spaces reserved in `tinyq.reserve`, so that in-place surgery can record what it did without moving the data."""
MAX_DIMENSIONS = 4
MOST_TENSORS, MOST_FIELDS = 1 << 17, 1 << 17
"""Limits far above any model (llama.cpp allows 512 layers of some dozens of tensors), so that scanning takes seconds at most."""
MOST_NAME = 1024
"""Most characters of a tensor's name; llama.cpp accepts fewer than 64 bytes."""

PIECE = 1 << 18
"""Bytes read at a time, and bytes of a string array that one vectorized step examines."""
WALK = 256
"""Strings skipped one by one, at least, after a vectorized step that skipped few."""


@dataclass(frozen=True, kw_only=True)
class GGUFHeader:
    """A GGUF file without its tensor data; `data_offset` is the byte offset of the data section in the file.

    A value in `metadata` is decoded when its `Field.value` is first read. `head` holds the bytes up to `data_offset`; it must
    not be modified, since the fields refer to it.
    """

    path: Path
    metadata: Mapping[str, Field]
    tensors: tuple[TensorEntry, ...]
    data_offset: int
    alignment: int
    head: bytearray = dataclass_field(repr=False)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` without its type, or `default`; arrays as tuples."""
        field = self.metadata.get(key)
        return default if field is None else field.value

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises CheckpointError if it is missing or not a string."""
        value = self.get("general.architecture")
        if not isinstance(value, str):
            raise CheckpointError(
                f"{self.path}: general.architecture is missing, which llama.cpp needs; download or write the file again"
            )
        return value

    def rewritten(self, changes: Mapping[str, Field | None], tensors: Sequence[TensorEntry]) -> bytes:
        """The packed header with `changes` applied (None removes a field, new fields go last) and `tensors` as its entries."""
        fields = {**self.metadata, **changes}
        return pack_header({key: field for key, field in fields.items() if field}, tensors, self.alignment)


def is_gguf(path: Path) -> bool:
    """Whether `path` is a regular file, or stands for a remote one, that starts with GGUF's magic.

    Raises OSError only where no more files can be opened.
    """
    try:
        if not path.is_file() and not remote_at(path):  # opening a pipe would wait for a writer
            return False
        with open_raw(path) as stream:
            return stream.read(4) == MAGIC
    except OSError as error:
        if exhausted(error):
            raise
        return False


def read_header(path: Path) -> GGUFHeader:
    """Read a GGUF file's metadata and tensor entries.

    Raises CheckpointError, naming the file and the key, tensor or offset, if the file is truncated or corrupt, has another
    version or byte order, has tensors that overlap, lie outside the file or have a type unknown to ggml, or if an in-place
    change of it was interrupted.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; give a GGUF file")
    refuse_interrupted(path)
    try:
        with open_raw(path) as stream:
            return _read(_Scan(stream, path, file_size(path)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error


class _Scan:
    """A cursor over a file's header that never passes the end of the file; `data` holds the bytes read so far."""

    def __init__(self, stream: RawIOBase, path: Path, size: int) -> None:
        self.stream = stream
        self.path = path
        self.size = size
        self.position = 0
        self.data = bytearray()

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}; the file is truncated or corrupt, download or write it again")

    def load(self, stop: int) -> None:
        """Read on until `data` holds at least the bytes up to `stop`."""
        while len(self.data) < stop:
            piece = self.stream.read(min(max(PIECE, stop - len(self.data)), self.size - len(self.data)))
            if not piece:
                raise self.fail(f"the file ended at byte {len(self.data)} while it was read")
            self.data += piece

    def skip(self, count: int, what: str) -> int:
        """Advance by `count` bytes, reading them into `data`; returns their offset."""
        start, left = self.position, self.size - self.position
        if count > left:
            raise self.fail(f"{what} needs {count} bytes at offset {start}, but only {left} are left")
        self.position += count
        if self.position > len(self.data):
            self.load(self.position)
        return start

    def u32(self, what: str) -> int:
        return int(U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(U64.unpack_from(self.data, self.skip(8, what))[0])

    def text(self, what: str) -> str:
        start = self.skip(self.u64(f"the length of {what}"), what)
        return self.data[start : self.position].decode("utf-8", errors="surrogateescape")

    def _name(self) -> str:
        """A tensor's name. A name that is not UTF-8 is refused: it could not be printed or looked up."""
        name = self.text("a tensor's name")
        if len(name) > MOST_NAME:
            raise self.fail(f"a tensor's name has {len(name)} characters; expected {MOST_NAME} at most")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self.fail(f"a tensor's name is not UTF-8 ({ascii(os.fsencode(name))[1:]})") from error
        return name

    def kind(self, what: str) -> ValueType:
        number = self.u32(f"the type of {what}")
        if number not in ValueType._value2member_map_:
            raise self.fail(f"{what} has type {number}, which GGUF does not define")
        return ValueType(number)

    def skip_value(self, kind: ValueType, what: str) -> None:
        if kind is ValueType.STRING:
            self.skip(self.u64(f"the length of {what}"), what)
        elif kind is not ValueType.ARRAY:
            self.skip(NUMBERS[kind].size, what)
        else:
            self._skip_array(what)

    def _skip_array(self, what: str) -> None:
        """Skip an array without decoding it; strings are skipped by their lengths, many at a time."""
        element = self.kind(f"the items of {what}")
        count = self.u64(f"the length of {what}")
        if element is ValueType.ARRAY:
            raise self.fail(f"{what} is an array of arrays, which llama.cpp does not read")
        if element is not ValueType.STRING:
            self.skip(count * NUMBERS[element].size, what)
            return
        if count > (self.size - self.position) // 8:
            raise self.fail(f"{what} claims {count} strings, more than the file can hold")
        walk, string = WALK, f"a string of {what}"
        while count:
            self.load(min(self.position + PIECE, self.size))
            found, self.position = _chained(self.data, self.position, count)
            # After a vectorized step that skips few strings, twice as many are skipped one by one before the next attempt.
            walk = WALK if found > WALK else 2 * walk
            walked = min(count - found, walk) if found < WALK else 0
            for _ in range(walked):
                self.skip(self.u64(string), string)
            count -= found + walked

    def entry(self) -> TensorEntry:
        """The next tensor entry; its shape in numpy's order, the reverse of ggml's."""
        name = self._name()
        dimensions = self.u32(f"the rank of {name}")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
        start = self.skip(8 * dimensions + 12, f"the entry of {name}")
        *sizes, number, offset = struct.unpack_from(f"<{dimensions}QIQ", self.data, start)
        shape = tuple(sizes[::-1])
        try:
            kind = type_of_id(number)
        except InputError as error:
            raise self.fail(f"tensor {name} has type {number}, which ggml does not define") from error
        if min(shape) < 1 or shape[-1] % kind.block:
            raise self.fail(
                f"tensor {name} has shape {shape}; expected no empty axis and rows of a multiple of {kind.block} ({kind})"
            )
        return TensorEntry(name, shape, kind, offset)


def _chained(data: bytearray, start: int, count: int) -> tuple[int, int]:
    """Skip a run of up to `count` short strings from `start` in one vectorized step; returns (number skipped, next offset).

    A length below 256 is stored as one byte followed by seven zeros. Such positions are candidates; they are lengths as long
    as each string ends exactly at the next candidate.
    """
    piece = np.frombuffer(data, np.uint8, min(PIECE, len(data) - start), start)
    zero = piece == 0
    two = zero[1:-1] & zero[2:]
    four = two[:-2] & two[2:]
    places = np.flatnonzero(four[:-3] & four[3:])
    if not places.size or places[0]:
        return 0, start
    ends = places + 8 + piece[places]
    broken = np.flatnonzero(ends[:-1] != places[1:])
    done = min(count, int(broken[0]) if broken.size else len(places) - 1)
    return done, start + int(ends[done - 1]) if done else start


def _read(scan: _Scan) -> GGUFHeader:
    """The header of a GGUF file of version 2 or 3. Raises CheckpointError for anything else."""
    path = scan.path
    magic = bytes(scan.data[scan.skip(len(MAGIC), "the magic") : scan.position])
    if magic != MAGIC:
        raise CheckpointError(f"{path}: starts with {magic!r}, not with {MAGIC!r}; it is not a GGUF file")
    version = scan.u32("the version")
    if version not in (2, 3):
        hint = "; it is big-endian" if int.from_bytes(U32.pack(version), "big") in (2, 3) else ""
        raise CheckpointError(f"{path}: GGUF version {version} found; expected 2 or 3{hint}; convert it again")
    n_tensors = scan.u64("the tensor count")
    n_fields = scan.u64("the metadata count")
    room = scan.size - scan.position
    if n_fields > room // 13 or n_tensors > room // 24:
        raise scan.fail(f"{n_tensors} tensors and {n_fields} metadata values are claimed, more than the file can hold")
    if n_tensors > MOST_TENSORS or n_fields > MOST_FIELDS:
        raise scan.fail(
            f"{n_tensors} tensors and {n_fields} metadata values are claimed; expected at most {MOST_TENSORS} and {MOST_FIELDS}"
        )
    places: dict[str, tuple[ValueType, int, int]] = {}
    for _ in range(n_fields):
        key = scan.text("a metadata key")
        if key in places:
            raise scan.fail(f"metadata key {key} appears twice")
        kind, start = scan.kind(key), scan.position
        scan.skip_value(kind, key)
        places[key] = kind, start, scan.position
    alignment = _alignment(scan, *places[ALIGNMENT_KEY]) if ALIGNMENT_KEY in places else DEFAULT_ALIGNMENT
    entries = tuple(scan.entry() for _ in range(n_tensors))
    data_offset = align(scan.position, alignment)
    _check_places(scan, entries, data_offset, alignment)
    scan.load(min(data_offset, scan.size))
    head = scan.data
    del head[data_offset:]
    return GGUFHeader(
        path=path,
        metadata={key: StoredField(kind, head, start, stop) for key, (kind, start, stop) in places.items()},
        tensors=entries,
        data_offset=data_offset,
        alignment=alignment,
        head=head,
    )


def _alignment(scan: _Scan, kind: ValueType, start: int, stop: int) -> int:
    value = StoredField(kind, scan.data, start, stop).value
    if type(value) is not int or value < 1 or value & (value - 1):
        raise scan.fail(f"{ALIGNMENT_KEY} is {shortened(repr(value))}; expected a power of two")
    return value


def _check_places(scan: _Scan, entries: Sequence[TensorEntry], data_offset: int, alignment: int) -> None:
    """Raise CheckpointError for duplicate names and for data not contiguous, aligned and inside the file, as gguf.cpp does."""
    expected = 0
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise scan.fail(f"tensor {entry.name} appears twice")
        seen.add(entry.name)
        if entry.offset != expected:
            raise scan.fail(f"tensor {entry.name} starts at offset {entry.offset}; expected {expected}")
        expected = align(entry.offset + entry.nbytes, alignment)
        end = data_offset + entry.offset + entry.nbytes
        if end > scan.size:
            raise scan.fail(f"tensor {entry.name} ends at byte {end}, but the file has {scan.size}")
