"""The streaming GGUF writer: the layout of a file is computed first, then its tensors are written piece by piece, each in place.

Source: the GGUF specification (`docs/gguf.md` of ggml).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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


def write_blocks(
    file: GGUFFile, encoder: Encoder, blocks: Iterable[Block], tally: Tally, progress: ByteProgress
) -> None:
    """Encode blocks of rows, and write each in the thread that encoded it, while it is in that processor's cache.

    `tally` counts what the encoding changed; `progress` receives each block's number of bytes. The first error is raised.
    """

    def write(block: Block) -> tuple[Encoded, int]:
        encoded = encode_block(block)
        file.put_rows(block.name, block.first, encoded.raw)
        return replace(encoded, raw=encoded.raw[:0].copy()), encoded.raw.nbytes

    for encoded, nbytes in encoder.map(write, blocks):
        tally.add(encoded)
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
