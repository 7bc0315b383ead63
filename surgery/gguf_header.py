"""A GGUF file's header by place: where each metadata value and tensor entry lies in the bytes, decoded only on request.

Surgery changes a few values and the list of tensors and leaves all else as it is, a vocabulary of a hundred thousand
strings included; so those are stepped over and copied as bytes. Source: the GGUF specification (`docs/gguf.md` of ggml).
Every count and length is checked against the size of the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.gguf.header import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    Field,
    TensorEntry,
    ValueType,
    align,
    pack_header,
)
from gguf_tools.formats.journal import recover
from quant.types import type_of_id

PREAMBLE = 24
"""Bytes before the metadata: magic, version, number of tensors, number of metadata values."""

PIECE = 1 << 20
"""Bytes of an array of strings that are looked at together."""
WALK = 1000
"""Strings that are walked one by one where they cannot be found together."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_LETTERS = dict(zip(ValueType, "BbHhIif?  Qqd", strict=True))
_NUMBERS = {kind: struct.Struct("<" + letter) for kind, letter in _LETTERS.items() if letter != " "}


@dataclass(frozen=True)
class Place:
    """Bytes `start` to `stop` of the file."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The parts of a header: `data` are its bytes, `fields` the places of the metadata values, keys included."""

    path: Path
    data: bytes
    fields: Mapping[str, Place]
    entries: tuple[TensorEntry, ...]
    alignment: int
    data_offset: int

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default`; arrays as tuples."""
        found = self.field(key)
        return default if found is None else found.value

    def field(self, key: str) -> Field | None:
        """The value of `key` with its type."""
        place = self.fields.get(key)
        if place is None:
            return None
        scan = _Scan(self.path, self.data, len(self.data), place.start)
        scan.text()
        return scan.value()

    @property
    def architecture(self) -> str:
        """`general.architecture`, or an error that says it is missing."""
        value = self.get("general.architecture")
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path}: general.architecture is missing; llama.cpp needs it to run the file")
        return value

    def rewritten(self, changes: Mapping[str, Field | None], entries: Sequence[TensorEntry]) -> bytes:
        """The header with fields replaced (removed for None, added at the end of the metadata) and other entries."""
        parts, count = self._parts(changes, entries)
        padding = b"\0" * (-sum(map(len, parts)) % self.alignment)
        preamble = pack_header({}, (), 1)[:8] + _U64.pack(len(entries)) + _U64.pack(count)
        return b"".join([preamble, *parts[1:], padding])

    def length(self, changes: Mapping[str, Field | None], entries: Sequence[TensorEntry]) -> int:
        """How long `rewritten` would be."""
        return align(sum(map(len, self._parts(changes, entries)[0])), self.alignment)

    def _parts(
        self, changes: Mapping[str, Field | None], entries: Sequence[TensorEntry]
    ) -> tuple[list[bytes | memoryview], int]:
        """The new header's bytes in parts, the preamble left blank, and its number of fields."""
        data = memoryview(self.data)
        parts: list[bytes | memoryview] = [bytes(PREAMBLE)]
        count = 0
        for key, place in self.fields.items():
            change = changes.get(key)
            if key not in changes:
                parts.append(data[place.start : place.stop])
            elif change is not None:
                parts.append(packed_field(key, change))
            else:
                continue
            count += 1
        added = {key: change for key, change in changes.items() if change is not None and key not in self.fields}
        parts += [packed_field(key, change) for key, change in added.items()]
        return [*parts, pack_header({}, entries, 1)[PREAMBLE:]], count + len(added)


def packed_field(key: str, field: Field) -> bytes:
    """One metadata value as its bytes in a header."""
    return pack_header({key: field}, (), 1)[PREAMBLE:]


class _Scan:
    """A position in the bytes of a header, which never goes past the end of the file."""

    def __init__(self, path: Path, data: bytes | mmap.mmap, size: int, position: int = 0) -> None:
        self.path = path
        self.data = data
        self.size = size
        self.position = position

    def fail(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}; the file is truncated or corrupt, fetch or write it again")

    def skip(self, count: int) -> Place:
        start, self.position = self.position, self.position + count
        if self.position > self.size:
            raise self.fail(f"{count} bytes claimed at offset {start}, but only {self.size - start} are left")
        return Place(start, self.position)

    def u32(self) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4).start)[0])

    def u64(self) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8).start)[0])

    def text(self) -> str:
        place = self.skip(self.u64())
        return bytes(self.data[place.start : place.stop]).decode("utf-8", errors="surrogateescape")

    def kind(self) -> ValueType:
        number = self.u32()
        if number not in ValueType._value2member_map_:
            raise self.fail(f"type {number} at offset {self.position - 4} is not one that GGUF defines")
        return ValueType(number)

    def skip_value(self) -> None:
        kind = self.kind()
        if kind is ValueType.STRING:
            self.skip(self.u64())
        elif kind is not ValueType.ARRAY:
            self.skip(_NUMBERS[kind].size)
        else:
            self._skip_array()

    def _skip_array(self) -> None:
        kind, count = self.kind(), self.u64()
        if kind is ValueType.ARRAY:
            raise self.fail("an array of arrays, which llama.cpp does not read, is in the metadata")
        if kind is not ValueType.STRING:
            self.skip(count * _NUMBERS[kind].size)
            return
        if count > (self.size - self.position) // 8:
            raise self.fail(f"{count} strings are claimed, more than the file can hold")
        while count:
            done, self.position = _step_over(self.data, self.position, count)
            count -= done
            if self.position > self.size:
                raise self.fail(f"strings at offset {self.position} end past the end of the file")

    def value(self) -> Field:
        kind = self.kind()
        if kind is ValueType.STRING:
            return Field(kind, self.text())
        if kind is not ValueType.ARRAY:
            return Field(kind, _NUMBERS[kind].unpack_from(self.data, self.position)[0])
        element, count = self.kind(), self.u64()
        if element is ValueType.STRING:
            return Field(kind, tuple(self.text() for _ in range(count)), element)
        return Field(kind, struct.unpack_from(f"<{count}{_LETTERS[element]}", self.data, self.position), element)

    def entry(self) -> TensorEntry:
        name = self.text()
        dimensions = self.u32()
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} expected")
        shape = tuple(self.u64() for _ in range(dimensions))[::-1]
        number, offset = self.u32(), self.u64()
        try:
            kind = type_of_id(number)
        except InputError as error:
            raise self.fail(f"tensor {name} has type {number}, which this ggml does not know") from error
        if min(shape) < 1 or shape[-1] % kind.block or prod(shape) > self.size * 256:
            raise self.fail(f"tensor {name} has shape {shape}, which {kind} in this file cannot have")
        return TensorEntry(name, shape, kind, offset)


def _step_over(data: bytes | mmap.mmap, start: int, count: int) -> tuple[int, int]:
    """Steps over some of `count` strings from `start`: how many, and where the next one starts.

    A length below 256 shows as a byte with seven zeros behind it. Where all such places in a piece form one chain, each
    leading to the next, they are the strings; where they do not, the next strings are walked one by one.
    """
    piece = np.frombuffer(data[start : start + PIECE], np.uint8)
    zero = piece == 0
    two = zero[1:-1] & zero[2:]
    four = two[:-2] & two[2:]
    places = np.flatnonzero(four[:-3] & four[3:])
    ends = places + 8 + piece[places]
    broken = np.flatnonzero(ends[:-1] != places[1:])
    chained = min(count, int(broken[0]) if broken.size else len(places) - 1)
    if chained > 0 and places[0] == 0:
        return chained, start + int(ends[chained - 1])
    walked, position = min(count, WALK), start
    try:
        for _ in range(walked):
            position += 8 + int(_U64.unpack_from(data, position)[0])
    except (struct.error, OverflowError):
        return walked, len(data) + 1
    return walked, position


def scan_header(path: Path) -> Header:
    """Find the parts of a GGUF file's header; CheckpointError, naming file and place, where it is broken.

    A change in place that was interrupted is carried through first.
    """
    recover(path)
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            if size < PREAMBLE:
                raise CheckpointError(f"{path}: {size} bytes are too few for a GGUF file")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _scanned(_Scan(path, mapped, size))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _scanned(scan: _Scan) -> Header:
    magic, version = bytes(scan.data[:4]), _U32.unpack_from(scan.data, 4)[0]
    if magic != MAGIC or version not in (2, 3):
        raise CheckpointError(f"{scan.path}: starts with {magic!r}, version {version}; GGUF version 2 or 3 expected")
    scan.skip(8)
    n_tensors, n_fields = scan.u64(), scan.u64()
    fields: dict[str, Place] = {}
    for _ in range(n_fields):
        start = scan.position
        key = scan.text()
        if key in fields:
            raise scan.fail(f"the metadata key {key} appears twice")
        scan.skip_value()
        fields[key] = Place(start, scan.position)
    entries = tuple(scan.entry() for _ in range(n_tensors))
    alignment = _alignment(scan, fields.get(ALIGNMENT_KEY))
    data_offset = align(scan.position, alignment)
    _check_places(scan, entries, data_offset, alignment)
    data = bytes(scan.data[: min(data_offset, scan.size)])
    return Header(
        path=scan.path, data=data, fields=fields, entries=entries, alignment=alignment, data_offset=data_offset
    )


def _alignment(scan: _Scan, place: Place | None) -> int:
    if place is None:
        return DEFAULT_ALIGNMENT
    inner = _Scan(scan.path, scan.data, scan.size, place.start)
    inner.text()
    alignment = inner.value().value
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise scan.fail(f"{ALIGNMENT_KEY} is {alignment!r}, a power of two expected")
    return alignment


def _check_places(scan: _Scan, entries: Sequence[TensorEntry], data_offset: int, alignment: int) -> None:
    if len({entry.name for entry in entries}) != len(entries):
        raise scan.fail("a tensor's name appears twice")
    if entries and entries[0].offset:
        raise scan.fail(f"tensor {entries[0].name} starts at {entries[0].offset}, 0 expected")
    for before, entry in pairwise(entries):
        expected = align(before.offset + before.nbytes, alignment)
        if entry.offset != expected:
            raise scan.fail(f"tensor {entry.name} starts at {entry.offset}, {expected} expected")
    if entries and data_offset + entries[-1].offset + entries[-1].nbytes > scan.size:
        raise scan.fail(f"tensor {entries[-1].name} ends past the end of the file")
