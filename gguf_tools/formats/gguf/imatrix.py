"""Files of importance matrices: llama.cpp's GGUF format is read and written, its old `.dat` format is read.

Source: `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp` of llama.cpp. Each weight tensor NAME has two F32 tensors:
NAME.in_sum2 (matrices, columns), sums of squared activations, and NAME.counts (matrices, 1), numbers of tokens.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import Metadata, ValueType, array, is_gguf, read_header, string, u32
from gguf_tools.formats.gguf.source import GGUFTensor, gguf_tensors
from gguf_tools.formats.gguf.writer import layout, write_gguf
from gguf_tools.formats.output import Check, atomic_output
from gguf_tools.formats.text_file import Kind, read_bytes
from quant.encode import ByteArray, FloatArray
from quant.imatrix import ImportanceMatrix, Statistics
from quant.types import F32

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
OLD_CHUNK = 512
"""Tokens per chunk assumed for an old file, which does not store it: llama-imatrix's default."""
MOST_TOKENS = 1 << 62


def read_imatrix(path: Path) -> ImportanceMatrix:
    """The importance matrix in a file of either format. Raises InputError or CheckpointError if the file is broken."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; collect an importance matrix with `tinyq imatrix`")
    return _read_gguf(path) if is_gguf(path) else _read_old(path)


def _read_gguf(path: Path) -> ImportanceMatrix:
    """An importance matrix in llama.cpp's GGUF format (since 2025). Raises InputError for any other GGUF."""
    header = read_header(path)
    tensors = {tensor.entry.name: tensor for tensor in gguf_tensors(header)}
    names = sorted(name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS))
    if not names:
        raise InputError(
            f"{path}: is a GGUF file without {SUMS} tensors; expected an importance matrix; collect one with `tinyq imatrix`"
        )
    entries = {name: _statistics(path, name, tensors) for name in names}
    datasets = header.get(DATASETS, ())
    known = isinstance(datasets, tuple) and all(isinstance(dataset, str) for dataset in datasets)
    return ImportanceMatrix(
        entries=entries,
        datasets=datasets if known else (),
        chunks=_whole(header.get(CHUNKS)),
        chunk_size=_whole(header.get(CHUNK_SIZE)),
        name=str(path),
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _statistics(path: Path, name: str, tensors: dict[str, GGUFTensor]) -> Statistics:
    sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
    if counts is None or counts.entry.type is not F32 or sums.entry.type is not F32 or sums.size % counts.size:
        raise InputError(
            f"{path}: {name}{COUNTS} is missing or its shape or type does not fit {name}{SUMS} (both F32); "
            "collect the matrix again"
        )
    seen = counts.array().reshape(-1).astype(np.float64)
    values = sums.array().reshape(seen.size, -1)
    _check(path, name, values, seen)
    return Statistics(values, np.rint(seen).astype(np.int64))


def _check(path: Path, name: str, sums: FloatArray, counts: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    if not np.isfinite(sums).all() or (sums < 0).any():
        raise InputError(f"{path}: {name} has negative or non-finite sums of squares; collect the matrix again")
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts > MOST_TOKENS).any():
        raise InputError(f"{path}: {name} has negative, non-finite or huge counts; collect the matrix again")


class _OldFile:
    """A cursor over an old file: little-endian 32-bit integers, floats, and length-prefixed strings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path, Kind.MATRIX, InputError)
        self.at = 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise InputError(
                f"{self.path}: ends at byte {len(self.data)}; expected {count} bytes from byte {self.at} on; it is truncated or "
                "not an importance matrix, collect it again"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8", errors="replace")

    @property
    def ended(self) -> bool:
        return self.at == len(self.data)


def _read_old(path: Path) -> ImportanceMatrix:
    """An importance matrix in the old format, where an entry's values are mean squares times its number of chunks.

    There is one count per tensor, shared by all experts. Raises InputError if the file is broken.
    """
    file = _OldFile(path)
    entries: dict[str, Statistics] = {}
    for _ in range(file.number()):
        name, calls = file.text(), file.number()
        values = np.frombuffer(file.take(4 * file.number()), "<f4").astype(np.float32).reshape(1, -1)
        counts = np.array([max(calls, 1)], np.int64)
        _check(path, name, values, counts.astype(np.float64))
        entries[name] = Statistics(values, counts)
    if not entries:
        raise InputError(f"{path}: holds no entries; it is not an importance matrix, or an empty one; collect it again")
    chunks = 0 if file.ended else file.number()
    datasets = () if file.ended else (file.text(),)
    return ImportanceMatrix(entries=entries, datasets=datasets, chunks=max(chunks, 0), chunk_size=0, name=str(path))


def in_tokens(matrix: ImportanceMatrix) -> ImportanceMatrix:
    """The matrix with counts in tokens, as merging and writing need; a matrix from an old file counts chunks."""
    if matrix.chunk_size:
        return matrix
    size = np.float32(OLD_CHUNK)
    entries = {name: Statistics(entry.sums * size, entry.counts * OLD_CHUNK) for name, entry in matrix.entries.items()}
    return ImportanceMatrix(
        entries=entries, datasets=matrix.datasets, chunks=matrix.chunks, chunk_size=OLD_CHUNK, name=matrix.name
    )


def recorded(matrix: ImportanceMatrix) -> Metadata:
    """The metadata that llama-quantize writes into a file quantized with this matrix; of paths only the file name."""
    noted: Metadata = {"quantize.imatrix.file": string(Path(matrix.name).name)}
    if matrix.datasets:
        noted["quantize.imatrix.dataset"] = string(Path(matrix.datasets[0]).name)
    noted["quantize.imatrix.entries_count"] = u32(len(matrix.entries))
    if matrix.chunks:
        noted["quantize.imatrix.chunks_count"] = u32(matrix.chunks)
    return noted


def write_imatrix(matrix: ImportanceMatrix, out: Path, *, force: bool = False, check: Check | None = None) -> int:
    """Write the matrix in llama.cpp's GGUF format; returns the size in bytes. Raises OutputError if it cannot be written.

    `check` is called before the file appears under its name; if it raises, no file is left.
    """
    matrix = in_tokens(matrix)
    pieces: list[tuple[str, FloatArray]] = []
    for name, entry in sorted(matrix.entries.items()):
        pieces += [(name + SUMS, entry.sums), (name + COUNTS, entry.counts.astype(np.float32).reshape(-1, 1))]
    where = layout((name, values.shape, F32) for name, values in pieces)
    metadata: Metadata = {
        "general.type": string("imatrix"),
        DATASETS: array(ValueType.STRING, matrix.datasets),
        CHUNKS: u32(matrix.chunks),
        CHUNK_SIZE: u32(matrix.chunk_size),
    }
    size = where.size(metadata)
    data = ((name, _bytes(values)) for name, values in pieces)
    with atomic_output(out, force=force, size=size, check=check) as stream:
        write_gguf(stream, metadata, where, data, lambda _: None)
    return size


def _bytes(values: FloatArray) -> ByteArray:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
