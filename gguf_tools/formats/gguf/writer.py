"""Outputs that appear whole or not at all, and the streaming GGUF writer.

Everything is written to a temporary file beside the output, flushed to the disk, and renamed; so a full disk, Ctrl-C or
`kill -9` leaves no output under its name. A later run to the same output removes what a killed one left behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from gguf_tools.errors import OutputError
from gguf_tools.formats.gguf.header import DEFAULT_ALIGNMENT, MAX_NAME, Metadata, TensorEntry, pack_header, place
from gguf_tools.progress import ByteProgress
from quant.encode import ByteArray
from quant.types import TensorType


@dataclass(frozen=True)
class Layout:
    """Where everything of a GGUF file lies: the tensor entries in order, and the sizes in bytes."""

    entries: tuple[TensorEntry, ...]
    data_bytes: int
    alignment: int = DEFAULT_ALIGNMENT

    def size(self, metadata: Metadata) -> int:
        """Bytes of the whole file with this metadata."""
        return len(pack_header(metadata, self.entries, self.alignment)) + self.data_bytes


def layout(tensors: Iterable[tuple[str, tuple[int, ...], TensorType]]) -> Layout:
    """The layout of tensors given as (name, shape in numpy's order, type)."""
    tensors = list(tensors)
    for name, _, _ in tensors:
        if len(name.encode()) > MAX_NAME:
            raise OutputError(f"tensor name {name} is longer than ggml's {MAX_NAME} bytes")
    entries, data_bytes = place(tensors)
    return Layout(entries, data_bytes)


def write_gguf(
    stream: BinaryIO, metadata: Metadata, where: Layout, pieces: Iterable[tuple[str, ByteArray]], progress: ByteProgress
) -> None:
    """Write header and data; `pieces` are (tensor name, bytes) in file order, a tensor may be split over any number of pieces."""
    stream.write(pack_header(metadata, where.entries, where.alignment))
    entries = iter(where.entries)
    entry: TensorEntry | None = None
    left = padding = 0
    for name, piece in pieces:
        if left == 0:
            stream.write(b"\0" * padding)
            entry = next(entries)
            left, padding = entry.nbytes, -entry.nbytes % where.alignment
        if entry is None or entry.name != name or piece.nbytes > left:
            raise ValueError(f"piece of {name} does not fit where {entry.name if entry else 'nothing'} is expected")
        stream.write(np.ascontiguousarray(piece).data)
        left -= piece.nbytes
        progress(piece.nbytes)
    if left or next(entries, None) is not None:
        raise ValueError("tensors are missing at the end of the file")
    stream.write(b"\0" * padding)
