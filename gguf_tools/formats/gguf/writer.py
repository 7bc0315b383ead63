"""The streaming GGUF writer: the layout of a file is computed first, then its tensors are written piece by piece, each in place.

Source: the GGUF specification (`docs/gguf.md` of ggml).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import BinaryIO

import numpy as np

from gguf_tools.errors import OutputError
from gguf_tools.formats.gguf.header import DEFAULT_ALIGNMENT, MAX_NAME, Metadata, TensorEntry, pack_header, place
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.blocks import Tally
from quant.encode import Block, ByteArray, Encoded, Encoder, encode_block
from quant.types import TensorType


@dataclass(frozen=True)
class Layout:
    """The layout of a GGUF file: the tensor entries in order, and the data section's size and alignment in bytes."""

    entries: tuple[TensorEntry, ...]
    data_bytes: int
    alignment: int = DEFAULT_ALIGNMENT

    def size(self, metadata: Metadata) -> int:
        """Bytes of the whole file with this metadata."""
        return len(pack_header(metadata, self.entries, self.alignment)) + self.data_bytes


def layout(tensors: Iterable[tuple[str, tuple[int, ...], TensorType]]) -> Layout:
    """The layout of tensors given as (name, shape in numpy's order, type). Raises OutputError for a name too long for ggml."""
    tensors = list(tensors)
    for name, _, _ in tensors:
        if len(name.encode()) > MAX_NAME:
            raise OutputError(
                f"tensor name {name} has {len(name.encode())} bytes; expected {MAX_NAME} at most, ggml's limit; rename it in "
                "the source"
            )
    entries, data_bytes = place(tensors)
    return Layout(entries, data_bytes)


class GGUFFile:
    """A GGUF file that is being written: first its header, then the tensors' bytes, in any order and from any thread.

    It has its full length from the beginning, zeros where nothing was written, so that llama.cpp can load its vocabulary.
    """

    def __init__(self, stream: BinaryIO, metadata: Metadata, where: Layout) -> None:
        header = pack_header(metadata, where.entries, where.alignment)
        stream.write(header)
        stream.flush()
        self._descriptor = stream.fileno()
        self._data = len(header)
        os.ftruncate(self._descriptor, len(header) + where.data_bytes)
        self._entries = {entry.name: entry for entry in where.entries}
        self._missing = sum(entry.nbytes for entry in where.entries)
        self._lock = Lock()

    def put(self, name: str, start: int, piece: ByteArray) -> None:
        """Write `piece` from byte `start` of a tensor on. Raises ValueError if it is not within the tensor."""
        entry = self._entries[name]
        if start < 0 or start + piece.nbytes > entry.nbytes:
            raise ValueError(f"{piece.nbytes} bytes from byte {start} on are not within {name}, {entry.nbytes} bytes")
        view, at = np.ascontiguousarray(piece).reshape(-1).data, self._data + entry.offset + start
        while view:
            count = os.pwrite(self._descriptor, view, at)
            view, at = view[count:], at + count
        with self._lock:
            self._missing -= piece.nbytes

    def put_rows(self, name: str, row: int, raw: ByteArray) -> None:
        """Write encoded rows (n, bytes per row), the first of which is row `row` of the tensor."""
        self.put(name, row * raw.shape[1], raw)

    def finish(self) -> None:
        """Raise ValueError unless every byte of the tensors was written once."""
        if self._missing:
            raise ValueError(f"{self._missing} bytes of the tensors were not written, or some twice")


@dataclass(frozen=True, eq=False)
class Target:
    """A file that is being written, and the tally of what its encoding changed."""

    file: GGUFFile
    tally: Tally


Group = Sequence[tuple[Block, Sequence[Target]]]
"""Blocks of the same rows of a tensor, one for each type, each with the files that hold the tensor in that type."""


def write_blocks(
    file: GGUFFile, encoder: Encoder, blocks: Iterable[Block], tally: Tally, progress: ByteProgress
) -> None:
    """Encode blocks of rows and write them to one file, as `write_groups` does."""
    target = Target(file, tally)
    write_groups(encoder, ([(block, (target,))] for block in blocks), progress)


def write_groups(encoder: Encoder, groups: Iterable[Group], progress: ByteProgress) -> None:
    """Read each group's rows once, encode them in each type, and write them to every file that holds them in that type.

    A thread does all that for one group, while its rows are in that processor's cache. `progress` receives the number of bytes
    written for each group. The first error is raised.
    """

    def write(group: Group) -> tuple[list[tuple[Encoded, Sequence[Target]]], int]:
        """What the encoding of each block changed, with the block's files, and the number of bytes written."""
        done: list[tuple[Encoded, Sequence[Target]]] = []
        nbytes = 0
        rows = group[0][0].rows
        rows = rows() if callable(rows) else rows
        for block, targets in group:
            encoded = encode_block(replace(block, rows=rows))
            for target in targets:
                target.file.put_rows(block.name, block.first, encoded.raw)
                nbytes += encoded.raw.nbytes
            done.append((replace(encoded, raw=encoded.raw[:0].copy()), targets))
        return done, nbytes

    for done, nbytes in encoder.map(write, groups):
        for encoded, targets in done:
            for target in targets:
                target.tally.add(encoded)
        progress(nbytes)


def write_gguf(
    stream: BinaryIO, metadata: Metadata, where: Layout, pieces: Iterable[tuple[str, ByteArray]], progress: ByteProgress
) -> None:
    """Write header and data; `pieces` are (tensor name, bytes), any number of pieces per tensor, each after the one before it.

    `progress` is called with each piece's number of bytes. Raises ValueError if the pieces do not match the layout.
    """
    file = GGUFFile(stream, metadata, where)
    ends = dict.fromkeys((entry.name for entry in where.entries), 0)
    for name, piece in pieces:
        file.put(name, ends[name], piece)
        ends[name] += piece.nbytes
        progress(piece.nbytes)
    file.finish()
