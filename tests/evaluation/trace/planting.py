"""Faults planted in a GGUF's bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.gguf.header import Field, read_header
from quant.encode import decode_rows, encode_rows
from tests.surgery.surgery_files import with_metadata
from tests.verification.changing import exchange

Floats = NDArray[np.float32]


def values_of(path: Path, name: str) -> Floats:
    """A tensor's values, decoded."""
    header = read_header(path)
    entry = next(entry for entry in header.tensors if entry.name == name)
    raw = np.fromfile(path, np.uint8, entry.nbytes, offset=header.data_offset + entry.offset)
    rows = raw.reshape(-1, entry.nbytes // max(1, int(np.prod(entry.shape[:-1]))))
    return np.asarray(decode_rows(rows, entry.type, entry.shape[-1])).reshape(entry.shape)


def change(path: Path, name: str, function: Callable[[Floats], Floats]) -> None:
    """Replace a tensor's values by what the function makes of them, encoded in the tensor's type again."""
    header = read_header(path)
    entry = next(entry for entry in header.tensors if entry.name == name)
    made = np.ascontiguousarray(function(values_of(path, name).copy()), np.float32)
    assert made.shape == entry.shape
    raw = encode_rows(made.reshape(-1, entry.shape[-1]), entry.type)
    with path.open("r+b") as stream:
        stream.seek(header.data_offset + entry.offset)
        stream.write(raw.tobytes())


def planted(source: Path, out: Path, *changes: tuple[str, Callable[[Floats], Floats]]) -> Path:
    """A copy of the file with tensors changed."""
    shutil.copy(source, out)
    for name, function in changes:
        change(out, name, function)
    return out


def with_key(source: Path, out: Path, key: str, field: Field) -> Path:
    """A copy of the file with a key of its architecture changed."""
    return with_metadata(source, out, {f"{read_header(source).architecture}.{key}": field})


def with_layers_exchanged(source: Path, out: Path, one: int, other: int) -> Path:
    """A copy of the file with two layers of one form exchanged."""
    shutil.copy(source, out)
    for entry in read_header(source).tensors:
        prefix = f"blk.{one}."
        if entry.name.startswith(prefix):
            exchange(out, entry.name, f"blk.{other}.{entry.name.removeprefix(prefix)}")
    return out
