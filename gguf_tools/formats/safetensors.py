"""Lazy, bounded reading of safetensors files.

Source: the format section of the safetensors README: 8 bytes of header length, a JSON header, then the data. Read with
`pread` rather than mapped, because mapped pages count as memory; every length and offset is checked against the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.float8 import FLOAT8
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray, RawArray, widen
from quant.types import BF16, F16, F32, TensorType, tensor_type

MAX_HEADER = 100_000_000
"""The safetensors library's own limit on the header's length, bytes."""

MOST_TENSORS = 1 << 18
"""Of one file; the largest known checkpoints have 150,000 in all their shards together."""
MOST_NAME = 1024
"""Characters of a tensor's name."""
MAX_RANK = 8
"""More axes than any weight has."""

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1} | {
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes an element, by safetensors' dtype names."""

INTEGERS: dict[str, type[np.generic]] = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StoredTensor(Tensor):
    """One tensor of a safetensors file; `offset` is from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    file: DataFile = field(repr=False)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.name,)

    def flat(self, start: int, stop: int) -> FloatArray:
        """The elements `start` to `stop` in row-major order as float32, shape (stop - start,)."""
        width = WIDTHS[self.dtype]
        raw = self.file.read(self.offset + start * width, (stop - start) * width)
        if self.dtype in ("BF16", "F16"):
            return widen(np.frombuffer(raw, np.uint16), tensor_type(self.dtype))
        if self.dtype == "F32":
            return np.frombuffer(raw, np.float32)
        if self.dtype == "F64":
            return np.frombuffer(raw, np.float64).astype(np.float32)
        if self.dtype in FLOAT8:
            return FLOAT8[self.dtype][np.frombuffer(raw, np.uint8)]
        raise CheckpointError(
            f"{self.file.path}: tensor {self.name} is stored as {self.dtype}; weights in F64, F32, F16, BF16 or FP8 expected"
        )

    def numbers(self, start: int, stop: int) -> NDArray[np.float64]:
        kind = INTEGERS.get(self.dtype)
        if kind is None:
            return super().numbers(start, stop)
        width = WIDTHS[self.dtype]
        raw = self.file.read(self.offset + start * width, (stop - start) * width)
        return np.frombuffer(raw, kind).astype(np.float64)

    @property
    def stored(self) -> TensorType:
        return {"F16": F16, "BF16": BF16}.get(self.dtype, F32)

    def raw(self, start: int, stop: int) -> RawArray:
        if self.stored is F32:
            return self.flat(start, stop)
        return np.frombuffer(self.file.read(self.offset + start * 2, (stop - start) * 2), np.uint16)


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its `__metadata__`.

    Raises CheckpointError, naming the file and the tensor, where the header is broken, a type is unknown, an offset
    does not fit the shape, data overlap, or the file is shorter than its header says.
    """
    file = DataFile(path)
    if file.size < 8:
        raise CheckpointError(f"{path}: {file.size} bytes are too few for a safetensors file; download it again")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER or 8 + length > file.size:
        raise CheckpointError(
            f"{path}: header of {length} bytes claimed in a file of {file.size}; truncated or not safetensors"
        )
    text = bytes(file.read(8, length))
    # Before they are parsed, which takes ten times the memory.
    if text.count(b'"data_offsets"') > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds more than {MOST_TENSORS:,} tensors, which no checkpoint needs")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header is not JSON ({error}); the file is corrupt, download it again"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: the header is a {type(header).__name__}, an object expected; the file is corrupt"
        )
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"{path}: __metadata__ is a {type(metadata).__name__}, an object expected; the file is corrupt"
        )
    if len(header) > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds more than {MOST_TENSORS:,} tensors, which no checkpoint needs")
    data = 8 + length
    tensors = {name: _entry(file, name, entry, data) for name, entry in header.items()}
    end = data
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise CheckpointError(f"{path}: tensor {tensor.name} overlaps the one before it; the file is corrupt")
        end = tensor.offset + tensor.size * WIDTHS[tensor.dtype]
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _entry(file: DataFile, name: str, entry: Any, data: int) -> StoredTensor:
    """The tensor of a header entry, its place checked against the file; `data` is the offset of the data section.

    Source: the safetensors format, "Format" (dtype, shape, data_offsets).
    """
    if len(name) > MOST_NAME:
        raise CheckpointError(
            f"{file.path}: a tensor's name has {len(name)} characters ({name[:40]}…), {MOST_NAME} at most expected"
        )
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = isinstance(dtype, str) and len(shape) <= MAX_RANK
        whole = whole and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(f"{file.path}: tensor {name} has a broken header entry; the file is corrupt")
    if dtype not in WIDTHS:
        raise CheckpointError(f"{file.path}: tensor {name} has dtype {dtype}; known are {', '.join(WIDTHS)}")
    if end - begin != prod(shape) * WIDTHS[dtype]:
        raise CheckpointError(
            f"{file.path}: tensor {name} of shape {shape} in {dtype} spans {end - begin} bytes; corrupt"
        )
    if data + end > file.size:
        raise CheckpointError(
            f"{file.path}: truncated: tensor {name} ends at byte {data + end}, the file has {file.size}"
        )
    return StoredTensor(name=name, dtype=dtype, shape=shape, offset=data + begin, file=file)


ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor to be written: its name, type and shape, and its bytes in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    width: int
    pieces: Iterable[bytes | bytearray | memoryview]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return prod(self.shape) * self.width


def write_safetensors(
    path: Path,
    tensors: Sequence[Stored],
    metadata: Mapping[str, str],
    progress: ByteProgress = lambda _: None,
    *,
    spaced: bool = False,
) -> None:
    """Write a safetensors file, in the order given, with bounded memory.

    With `spaced` the JSON header has a space after each comma and colon, as Python's json writes it, else none, as the
    safetensors library writes it.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(", ", ": ") if spaced else (",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces:
                stream.write(piece)
                written += len(piece)
                progress(len(piece))
            if written != tensor.nbytes:
                raise ValueError(f"{written} bytes of {tensor.name} written, {tensor.nbytes} expected")
