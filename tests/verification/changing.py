"""Changes of a GGUF's bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.gguf.header import read_header
from quant.types import TensorType

Bytes = NDArray[np.uint8]


def change_tensor(path: Path, name: str, change: Callable[[Bytes, TensorType], None]) -> Path:
    """Rewrites one tensor's data in place; `change` gets it as blocks (n, block bytes), and its type."""
    header = read_header(path)
    entry = next(entry for entry in header.tensors if entry.name == name)
    start = header.data_offset + entry.offset
    data = bytearray(path.read_bytes())
    blocks = np.frombuffer(data, np.uint8, entry.nbytes, start).reshape(-1, entry.type.block_bytes).copy()
    change(blocks, entry.type)
    data[start : start + entry.nbytes] = blocks.tobytes()
    path.write_bytes(data)
    return path


def tensor_bytes(path: Path, name: str) -> Bytes:
    """One tensor's data."""
    header = read_header(path)
    entry = next(entry for entry in header.tensors if entry.name == name)
    return np.fromfile(path, np.uint8, entry.nbytes, offset=header.data_offset + entry.offset)


def exchange(path: Path, one: str, other: str) -> Path:
    """Two tensors of one type and shape change places."""
    a, b = tensor_bytes(path, one), tensor_bytes(path, other)
    change_tensor(path, one, lambda blocks, _: np.copyto(blocks, b.reshape(blocks.shape)))
    return change_tensor(path, other, lambda blocks, _: np.copyto(blocks, a.reshape(blocks.shape)))
