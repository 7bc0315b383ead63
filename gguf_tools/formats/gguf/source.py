"""A GGUF file as a source: its metadata, and its tensors, decoded to float32 when read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.digest import FileDigest
from gguf_tools.formats.gguf.header import GGUFHeader, TensorEntry
from gguf_tools.formats.gguf.split import joined_header, read_parts
from gguf_tools.tensors.base import NARROW, Tensor
from quant.encode import FloatArray, RawArray, can_decode, decode_rows
from quant.types import F32, TensorType


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

    @property
    def is_numeric(self) -> bool:
        """Whether ggml can decode the tensor's type to float32: integers and doubles it only copies."""
        return can_decode(self.entry.type)

    def flat(self, start: int, stop: int) -> FloatArray:
        """The elements `start` to `stop`, decoded. Raises CheckpointError for integers and doubles."""
        dtype = self.entry.type
        if not self.is_numeric:
            raise CheckpointError(
                f"{self.file.path}: tensor {self.entry.name} is stored as {dtype}, which llama.cpp does not compute with; "
                "expected a type of weights such as f32; write the file again"
            )
        first, last = start // dtype.block, -(-stop // dtype.block)
        offset = self.data_offset + self.entry.offset + first * dtype.block_bytes
        raw = self.file.read(offset, (last - first) * dtype.block_bytes)
        blocks = decode_rows(np.frombuffer(raw, np.uint8).reshape(1, -1), dtype, (last - first) * dtype.block)
        return blocks.reshape(-1)[start - first * dtype.block : stop - first * dtype.block]

    @property
    def stored(self) -> TensorType:
        return self.entry.type

    def raw(self, start: int, stop: int) -> RawArray:
        dtype = self.entry.type
        first, last = start // dtype.block * dtype.block_bytes, stop // dtype.block * dtype.block_bytes
        data = self.read(first, last - first)
        if dtype is F32:
            return data.view(np.float32)
        return data.view(np.uint16) if dtype in NARROW else data

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """`count` bytes of the data from byte `start` on."""
        return np.frombuffer(self.file.read(self.data_offset + self.entry.offset + start, count), np.uint8)


@dataclass(frozen=True)
class GGUFSource:
    """An open GGUF file; `key` reads metadata of its architecture, without the `<architecture>.` prefix."""

    header: GGUFHeader
    tensors: Mapping[str, Tensor]

    @property
    def path(self) -> Path:
        """The file's path; the first shard's if the model is split."""
        return self.header.path

    @property
    def architecture(self) -> str:
        """general.architecture."""
        return self.header.architecture

    def key(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`, or `default`. Raises CheckpointError if both are missing."""
        value = self.header.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise CheckpointError(f"{self.path}: metadata {self.architecture}.{name} is missing; write the file again")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """The value of `<architecture>.<name>`. Raises CheckpointError unless it is an integer from 0 to 2³¹ - 1."""
        value = self.key(name, default)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise self._wrong(name, value, "an integer from 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The value of `<architecture>.<name>`. Raises CheckpointError unless it is a finite number."""
        value = self.key(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, value, "a number")
        return float(value)

    def _wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: metadata {self.architecture}.{name} is {repr(value)[:60]}; expected {expected}; write the file again"
        )

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`. Raises CheckpointError if the file has none."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing; write the file again")
        return self.tensors[name]


def open_gguf(path: Path) -> GGUFSource:
    """Open a GGUF file, with all its shards if it is split. Raises CheckpointError if a file is broken or missing."""
    parts = read_parts(path)
    tensors = {tensor.entry.name: tensor for part in parts for tensor in gguf_tensors(part)}
    return GGUFSource(joined_header(parts), tensors)


def gguf_digest(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 over a GGUF file's bytes, or over those of all its parts in order, in hexadecimal.

    It is meaningless once `cancelled` is true. Raises CheckpointError if a part can no longer be read.
    """
    total = FileDigest()
    for part in read_parts(path):
        try:
            total.add_file(part.path, cancelled)
        except OSError as error:
            raise CheckpointError(f"{part.path}: cannot be read any more ({error.strerror}); begin again") from error
    return total.hexdigest()


def gguf_tensors(header: GGUFHeader) -> list[GGUFTensor]:
    """The tensors of one file, in file order."""
    file = DataFile(header.path)
    return [GGUFTensor(entry, header.data_offset, file) for entry in header.tensors]
