"""Reading safetensors files lazily, and writing them, in bounded memory.

Source: the section "Format" of the safetensors README: 8 bytes of header length, a JSON header, then the data. Read with
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
from gguf_tools.formats.text_file import load_json
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray, RawArray, widen
from quant.types import BF16, F16, F32, TensorType, tensor_type

MAX_HEADER = 100_000_000
"""Most bytes of a header; the safetensors library has the same limit."""

MOST_TENSORS = 1 << 18
"""Most tensors of one file; the largest known checkpoints have 150,000 in all shards together."""
MOST_NAME = 1024
"""Most characters of a tensor's name."""
MAX_RANK = 8
"""Most axes of a tensor; weights have fewer."""

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1} | {
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes per element, by safetensors' dtype names."""

INTEGERS: dict[str, type[np.generic]] = {
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.uint8,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StoredTensor(Tensor):
    """One tensor of a safetensors file; `offset` is in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    file: DataFile = field(repr=False)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def end(self) -> int:
        """The byte of the file after the tensor's last."""
        return self.offset + self.size * WIDTHS[self.dtype]

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
            f"{self.file.path}: tensor {self.name} is stored as {self.dtype}; expected F64, F32, F16, BF16 or FP8; "
            "save it in one of these"
        )

    def numbers(self, start: int, stop: int) -> NDArray[np.float64]:
        kind = INTEGERS.get(self.dtype)
        if kind is None:
            return super().numbers(start, stop)
        width = WIDTHS[self.dtype]
        raw = self.file.read(self.offset + start * width, (stop - start) * width)
        return np.frombuffer(raw, kind).astype(np.float64)

    def stored_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        width = WIDTHS[self.dtype]
        return np.frombuffer(self.file.read(self.offset + start * width, (stop - start) * width), np.uint8)

    @property
    def stored(self) -> TensorType:
        return {"F16": F16, "BF16": BF16}.get(self.dtype, F32)

    def raw(self, start: int, stop: int) -> RawArray:
        if self.stored is F32:
            return self.flat(start, stop)
        return np.frombuffer(self.file.read(self.offset + start * 2, (stop - start) * 2), np.uint16)


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and its `__metadata__`.

    Raises CheckpointError, naming the file and the tensor, if the header is broken, a dtype is unknown, a tensor's length
    does not fit its shape, tensors overlap, or the file is shorter than its header says.
    """
    file = DataFile(path)
    if file.size < 8:
        raise CheckpointError(f"{path}: {file.size} bytes are too few for a safetensors file; download it again")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER or 8 + length > file.size:
        raise CheckpointError(
            f"{path}: the header claims {length} bytes, but the file has {file.size}; it is truncated or not safetensors, "
            "download it again"
        )
    text = bytes(file.read(8, length))
    # Counted before the header is parsed, which takes ten times its memory.
    if text.count(b'"data_offsets"') > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds more than {MOST_TENSORS:,} tensors; split it into shards")
    try:
        header = load_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header is not JSON ({error}); the file is corrupt, download it again"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: the header is a JSON {type(header).__name__}; expected an object; the file is corrupt, download it again"
        )
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"{path}: __metadata__ is a {type(metadata).__name__}; expected an object; the file is corrupt, download it again"
        )
    if len(header) > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds more than {MOST_TENSORS:,} tensors; split it into shards")
    data = 8 + length
    tensors = {name: _entry(file, name, entry, data) for name, entry in header.items()}
    end = data
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise CheckpointError(
                f"{path}: tensor {tensor.name} overlaps the tensor before it; the file is corrupt, download it again"
            )
        end = tensor.end
    if file.remote:
        file.remote.divide(sorted((tensor.offset, tensor.end) for tensor in tensors.values()))
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _entry(file: DataFile, name: str, entry: Any, data: int) -> StoredTensor:
    """The tensor of one header entry; `data` is the offset of the data section in bytes.

    Raises CheckpointError if the entry is broken or lies outside the file. Source: the section "Format" of the safetensors
    README (dtype, shape, data_offsets).
    """
    if len(name) > MOST_NAME:
        raise CheckpointError(
            f"{file.path}: a tensor's name has {len(name)} characters ({name[:40]}…); expected {MOST_NAME} at most; "
            "rename it"
        )
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = isinstance(dtype, str) and len(shape) <= MAX_RANK
        whole = whole and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"{file.path}: tensor {name} has a broken header entry; the file is corrupt, download it again"
        )
    if dtype not in WIDTHS:
        raise CheckpointError(f"{file.path}: tensor {name} has dtype {dtype}; expected one of {', '.join(WIDTHS)}")
    if end - begin != prod(shape) * WIDTHS[dtype]:
        raise CheckpointError(
            f"{file.path}: tensor {name} of shape {shape} in {dtype} spans {end - begin} bytes; "
            f"expected {prod(shape) * WIDTHS[dtype]}; the file is corrupt, download it again"
        )
    if data + end > file.size:
        raise CheckpointError(
            f"{file.path}: tensor {name} ends at byte {data + end}, but the file has {file.size}; it is truncated, "
            "download it again"
        )
    return StoredTensor(name=name, dtype=dtype, shape=shape, offset=data + begin, file=file)


ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor to write: name, safetensors dtype, shape, `width` in bytes per element, and the data in pieces."""

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
    """Write a safetensors file, tensors in the order given, in bounded memory.

    With `spaced` the JSON header has a space after each comma and colon, as Python's json writes it; otherwise none, as the
    safetensors library writes it. `progress` is called with each piece's number of bytes. Raises ValueError if a tensor's
    pieces do not have its length.
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
                raise ValueError(f"{written} bytes of {tensor.name} written; expected {tensor.nbytes}")
