"""A GGUF file as a source: its tensors, lazily decoded to float32, and its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.data_file import DataFile
from gguf_tools.errors import CheckpointError
from gguf_tools.gguf_file import GGUFHeader, TensorEntry, read_header
from gguf_tools.tensors import FloatArray, Tensor
from quant.encode import decode_rows


@dataclass(frozen=True)
class GGUFTensor(Tensor):
    """One tensor of a GGUF file; quantized blocks are decoded by ggml's own code."""

    entry: TensorEntry
    data_offset: int
    file: DataFile = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.entry.shape

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.entry.type.name

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.entry.name,)

    def flat(self, start: int, stop: int) -> FloatArray:
        kind = self.entry.type
        first, last = start // kind.block, -(-stop // kind.block)
        offset = self.data_offset + self.entry.offset + first * kind.block_bytes
        raw = self.file.read(offset, (last - first) * kind.block_bytes)
        blocks = decode_rows(np.frombuffer(raw, np.uint8).reshape(1, -1), kind, (last - first) * kind.block)
        return blocks.reshape(-1)[start - first * kind.block : stop - first * kind.block]


@dataclass(frozen=True)
class GGUFSource:
    """An open GGUF file; `key` reads the architecture's own metadata without its prefix."""

    header: GGUFHeader
    tensors: Mapping[str, Tensor]

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    @property
    def architecture(self) -> str:
        """general.architecture."""
        return self.header.architecture

    def key(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`; CheckpointError if it is missing without a default."""
        value = self.header.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise CheckpointError(f"{self.path}: metadata {self.architecture}.{name} is missing; write the file again")
        return value

    def tensor(self, name: str) -> Tensor:
        """A tensor that must exist."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing; write the file again")
        return self.tensors[name]


def open_gguf(path: Path) -> GGUFSource:
    """Open a GGUF file as a source; CheckpointError where it is broken."""
    header = read_header(path)
    file = DataFile(path)
    return GGUFSource(header, {entry.name: GGUFTensor(entry, header.data_offset, file) for entry in header.tensors})
