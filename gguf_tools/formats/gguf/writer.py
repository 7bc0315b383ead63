"""The streaming GGUF writer: the layout of a file is computed first, then its tensors are written piece by piece.

Source: the GGUF specification (`docs/gguf.md` of ggml).
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


def write_gguf(
    stream: BinaryIO, metadata: Metadata, where: Layout, pieces: Iterable[tuple[str, ByteArray]], progress: ByteProgress
) -> None:
    """Write header and data; `pieces` are (tensor name, bytes) in file order, any number of pieces per tensor.

    `progress` is called with each piece's number of bytes. Raises ValueError if the pieces do not match the layout.
    """
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
