"""Reading llama2.c's `.bin` files of versions 0 and 1: a header of integers, then all weights as float32.

Source: karpathy/llama2.c, `export.py` (legacy_export, version1_export). The tensors get the names of Meta's checkpoints, which
that program trains: `layers.N.attention.wq.weight` and so on. In the file one kind of tensor follows another, each for all
layers. Version 2 holds int8 groups, which is another program's quantization and is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.safetensors import MOST_TENSORS
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray

MAGIC = 0x616B3432
HEADER_1 = 256
"""Bytes of version 1's header, padded with zeros."""
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
FIXED = {"norm_eps": 1e-5, "rope_theta": 10000.0}
"""What llama2.c's code computes with and no version of the file states."""


@dataclass(frozen=True, kw_only=True)
class BinTensor(Tensor):
    """One float32 tensor of the file; `offset` is from the start of the file."""

    name: str
    shape: tuple[int, ...]
    offset: int
    file: DataFile = field(repr=False)
    dtype: str = "F32"

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.name,)

    def flat(self, start: int, stop: int) -> FloatArray:
        """The elements `start` to `stop` in row-major order as float32, shape (stop - start,)."""
        return np.frombuffer(self.file.read(self.offset + start * 4, (stop - start) * 4), "<f4")


@dataclass(frozen=True)
class BinFile:
    """The tensors of a file by Meta's names, and its config in the keys of llama2.c's `ModelArgs`."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, int | float | bool]


@dataclass(frozen=True)
class _Layout:
    version: int
    sizes: Mapping[str, int]
    tied: bool
    start: int


def is_llama2c(path: Path) -> bool:
    """Whether a file begins as one of llama2.c's does: version 1 and 2 by their magic, version 0 by sizes that fit the file."""
    try:
        file = DataFile(path)
    except CheckpointError:
        return False
    if file.size < 28:
        return False
    head = bytes(file.read(0, 28))
    if int.from_bytes(head[:4], "little") == MAGIC:
        return True
    layout = _version_0(head)
    return layout is not None and _end(layout) == file.size


def read_llama2c(path: Path) -> BinFile:
    """The file's tensors, lazy, and config.

    Raises UnsupportedError for version 2 (int8) and versions not known, CheckpointError where the header has sizes that do
    not fit each other or the file.
    """
    file = DataFile(path)
    head = bytes(file.read(0, min(HEADER_1, file.size)))
    layout = _version_1(path, head) if int.from_bytes(head[:4], "little") == MAGIC else _version_0(head)
    if layout is None:
        raise CheckpointError(f"{path}: is not a llama2.c file: the sizes in its header do not fit each other")
    if _end(layout) != file.size:
        raise CheckpointError(
            f"{path}: has {file.size} bytes; expected {_end(layout)} from its header ({_described(layout.sizes)}); "
            "export it again"
        )
    tensors, offset = {}, layout.start
    for name, shape in _shapes(layout):
        tensors[name] = BinTensor(name=name, shape=shape, offset=offset, file=file)
        offset += 4 * prod(shape)
    return BinFile(tensors, {**layout.sizes, **FIXED, "tie_word_embeddings": layout.tied})


def _version_0(head: bytes) -> _Layout | None:
    """Version 0: seven int32; a negative vocabulary size says that the output projection is stored."""
    sizes = dict(zip(FIELDS, struct.unpack("<7i", head[:28]), strict=True))
    tied = sizes["vocab_size"] > 0
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    return _Layout(0, sizes, tied, 28) if _fits(sizes) else None


def _version_1(path: Path, head: bytes) -> _Layout:
    """Version 1: the magic number, the version, seven int32 and one byte, 1 where the output is the embedding."""
    if len(head) < HEADER_1:
        raise CheckpointError(
            f"{path}: has {len(head)} bytes, fewer than the {HEADER_1} of its header; export it again"
        )
    version = struct.unpack("<i", head[4:8])[0]
    if version != 1:
        what = "int8 groups" if version == 2 else "not known"
        raise UnsupportedError(
            f"{path}: is version {version} of llama2.c's format ({what}); export the checkpoint as float32 "
            "(export.py --version 1), or give the .pt file"
        )
    sizes = dict(zip(FIELDS, struct.unpack("<7i", head[8:36]), strict=True))
    if not _fits(sizes):
        raise CheckpointError(f"{path}: its header has sizes that do not fit each other ({_described(sizes)})")
    return _Layout(1, sizes, head[36] == 1, HEADER_1)


def _fits(sizes: Mapping[str, int]) -> bool:
    """Whether heads, groups and layers come out whole, and no number is beyond any model."""
    positive = all(0 < size < 1 << 31 for size in sizes.values())
    return (
        positive
        and 9 * sizes["n_layers"] < MOST_TENSORS
        and sizes["dim"] % sizes["n_heads"] == 0
        and sizes["n_heads"] % sizes["n_kv_heads"] == 0
        and sizes["dim"] // sizes["n_heads"] % 2 == 0
    )


def _described(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {size}" for key, size in sizes.items())


def _end(layout: _Layout) -> int:
    return layout.start + 4 * sum(prod(shape) for _, shape in _shapes(layout))


def _shapes(layout: _Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file.

    Version 0 has the embedding first, the norms before the matrices that read them, and two tables of rope, (positions,
    head_dim / 2), before the output; version 1 has all norms first and no tables.
    """
    sizes = layout.sizes
    dim, hidden, vocab = sizes["dim"], sizes["hidden_dim"], sizes["vocab_size"]
    keys = dim // sizes["n_heads"] * sizes["n_kv_heads"]
    embedding = ("tok_embeddings.weight", (vocab, dim))
    norms = {"attention_norm": (dim,), "ffn_norm": (dim,)}
    attention = {"attention.wq": (dim, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim)}
    attention["attention.wo"] = (dim, dim)
    mlp = {"feed_forward.w1": (hidden, dim), "feed_forward.w2": (dim, hidden), "feed_forward.w3": (hidden, dim)}

    def every(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, shape in shapes.items():
            yield from ((f"layers.{n}.{name}.weight", shape) for n in range(sizes["n_layers"]))

    if layout.version == 0:
        yield embedding
        yield from every({"attention_norm": norms["attention_norm"], **attention, "ffn_norm": norms["ffn_norm"], **mlp})
        yield "norm.weight", (dim,)
        table = (sizes["max_seq_len"], dim // sizes["n_heads"] // 2)
        yield from (("freqs_cos", table), ("freqs_sin", table))
    else:
        yield from every(norms)
        yield "norm.weight", (dim,)
        yield embedding
        yield from every({**attention, **mlp})
    if not layout.tied:
        yield "output.weight", (vocab, dim)
