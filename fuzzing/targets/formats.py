"""GGUF files and their splits, safetensors with and without an index, and importance matrices."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing import archive
from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.evaluation.golden.check import check_arrays
from gguf_tools.evaluation.golden.read import read_dump, read_golden_files
from gguf_tools.evaluation.golden_logits import read_golden
from gguf_tools.formats.gguf.header import (
    Metadata,
    ValueType,
    array,
    boolean,
    f32,
    pack_header,
    place,
    read_header,
    string,
    u32,
)
from gguf_tools.formats.gguf.imatrix import read_imatrix
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.gguf.split import split_keys
from gguf_tools.formats.safetensors import Stored, read_safetensors, write_safetensors
from gguf_tools.sources.checkpoint import open_checkpoint
from quant.recipes import TensorFacts
from quant.types import F32, Q4_0, TYPES, TensorType

Tensors = list[tuple[str, tuple[int, ...], TensorType]]


def gguf_bytes(metadata: Metadata, tensors: Tensors) -> bytes:
    """A whole GGUF file, its data zeros."""
    entries, count = place(tensors)
    return pack_header(metadata, entries, 32) + bytes(count)


def _gguf_seeds() -> list[bytes]:
    every: Metadata = {
        "general.architecture": string("llama"),
        "general.alignment": u32(32),
        "llama.block_count": u32(1),
        "a.f": f32(1.0),
        "a.b": boolean(True),
        "a.s": array(ValueType.STRING, ["a", "", "ü", "b" * 300]),
        "a.n": array(ValueType.INT16, [1, -2]),
        "a.d": array(ValueType.FLOAT64, [1.0]),
    }
    tensors: Tensors = [("a.weight", (2, 3), F32), ("b.weight", (2, 32), Q4_0), ("c", (5,), F32)]
    return [
        gguf_bytes({}, []),
        gguf_bytes(every, tensors),
        gguf_bytes({"a": array(ValueType.STRING, ["xy"] * 300)}, []),
    ]


def _gguf(folder: Path) -> Prepared:
    path = folder / "model.gguf"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        header = read_header(path)
        values = {key: field.value for key, field in header.metadata.items()}
        source = open_gguf(path)
        for tensor in source.tensors.values():
            tensor.flat(0, min(tensor.size, 64))
        again = pack_header(header.metadata, header.tensors, header.alignment)
        path.write_bytes(again + data[header.data_offset :])
        found = read_header(path)
        assert found.tensors == header.tensors
        assert repr({key: field.value for key, field in found.metadata.items()}) == repr(values)
        return True

    return Prepared(_gguf_seeds(), read)


def _splits(folder: Path) -> Prepared:
    names = [f"m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    parts: dict[str, bytes] = {}
    for n, name in enumerate(names):
        metadata = {"general.architecture": string("llama")} if n == 0 else {}
        parts[name] = gguf_bytes(metadata | split_keys(n, 3, 3), [(f"t{n}", (4,), F32)])

    def read(data: bytes) -> bool:
        archive.write(folder, archive.unpack(data), frozenset(names))
        return bool(open_gguf(folder / names[0]).tensors)

    return Prepared([archive.pack(parts)], read)


def safetensors_bytes(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of tensors (dtype, shape), its data zeros; F32, F16 and I64 are known."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * {"F32": 4, "F16": 2, "I64": 8}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def _safetensors(folder: Path) -> Prepared:
    path = folder / "model.safetensors"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        tensors, _ = read_safetensors(path)
        for tensor in tensors.values():
            tensor.numbers(0, min(tensor.size, 16))
        return True

    seeds = [
        safetensors_bytes({"a": ("F32", (2, 3)), "b": ("F16", (4,)), "c": ("I64", ())}, {"format": "pt"}),
        safetensors_bytes({}),
    ]
    return Prepared(seeds, read)


def _safetensors_header(folder: Path) -> Prepared:
    path = folder / "model.safetensors"
    seeds = [safetensors_bytes({"a": ("F32", (2, 3)), "b": ("F16", (4,))}, {"format": "pt"})[8:-32]]

    def read(data: bytes) -> bool:
        path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(64))
        tensors, _ = read_safetensors(path)
        for tensor in tensors.values():
            tensor.numbers(0, min(tensor.size, 16))
        return True

    return Prepared(seeds, read)


INDEXED = ("config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors", "README.md")


def _index(folder: Path) -> Prepared:
    files = {
        "config.json": b'{"model_type": "llama", "tie_word_embeddings": true}',
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"model.embed_tokens.weight": "a.safetensors", "b": "b.safetensors"}}
        ).encode(),
        "a.safetensors": safetensors_bytes({"model.embed_tokens.weight": ("F32", (2, 3))}),
        "b.safetensors": safetensors_bytes({"b": ("F32", (2,))}),
    }

    def read(data: bytes) -> bool:
        archive.write(folder, archive.unpack(data), frozenset(INDEXED))
        return bool(open_checkpoint(folder).tensors)

    return Prepared([archive.pack(files)], read)


def old_imatrix() -> bytes:
    """An importance matrix in the old format."""
    name = b"blk.0.a.weight"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii4f", 3, 4, 1.0, 2.0, 3.0, 4.0)
    return struct.pack("<i", 1) + entry + struct.pack("<ii", 7, 3) + b"x.y"


def _imatrix(folder: Path) -> Prepared:
    path = folder / "imatrix.gguf"
    facts = [TensorFacts("blk.0.a.weight", (2, 4))]
    metadata: Metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(ValueType.STRING, ["a.txt"]),
        "imatrix.chunk_count": u32(3),
        "imatrix.chunk_size": u32(512),
    }
    new = gguf_bytes(metadata, [("blk.0.a.weight.in_sum2", (1, 4), F32), ("blk.0.a.weight.counts", (1, 1), F32)])

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        matrix = read_imatrix(path)
        matrix.importance(facts)
        return True

    return Prepared([old_imatrix(), new], read)


def _golden(folder: Path) -> Prepared:
    path = folder / "golden.npz"
    out = io.BytesIO()
    np.savez(out, tokens_0=np.arange(2), logits_0=np.zeros((2, 3), np.float32))

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return bool(read_golden(path))

    return Prepared([out.getvalue()], read)


def _golden_array(folder: Path) -> Prepared:
    """The input is an array of numpy's format in a file of golden logits."""
    path = folder / "golden.npz"
    out, tokens = io.BytesIO(), io.BytesIO()
    np.save(out, np.zeros((2, 3), np.float32))
    np.save(tokens, np.arange(2))

    def read(data: bytes) -> bool:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("tokens_0.npy", tokens.getvalue())
            archive.writestr("logits_0.npy", data)
        return bool(read_golden(path))

    return Prepared([out.getvalue()], read)


def _golden_folder(folder: Path) -> Prepared:
    """The input is golden.json; the folder's own arrays are then checked as an engine's."""
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "tokens_0": np.arange(2),
        "logits_0": logits,
        "greedy_0": np.array([1]),
        "margins_0": np.ones(1, np.float32),
    }
    stored = [
        Stored(
            name=name,
            dtype="I64" if values.dtype == np.int64 else "F32",
            shape=values.shape,
            width=values.itemsize,
            pieces=[values.tobytes()],
        )
        for name, values in arrays.items()
    ]
    write_safetensors(folder / "golden.safetensors", stored, {})
    facts = {
        "format": 1,
        "model": {"vocab_size": 3},
        "prompts": [{"tokens": [0, 1], "text": "a", "greedy": [1]}],
        "tolerances": {"f32": {"logits": 1e-10}},
    }

    def read(data: bytes) -> bool:
        (folder / "golden.json").write_bytes(data)
        files = read_golden_files(folder)
        return check_arrays(files, files.arrays, "engine").passed

    return Prepared([json.dumps(facts).encode()], read)


def _dump(folder: Path) -> Prepared:
    """The input is an engine's dump (.npz)."""
    path = folder / "dump.npz"
    out = io.BytesIO()
    np.savez(out, logits_0=np.zeros((2, 3), np.float32), greedy_0=np.array([1]))

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return bool(read_dump(path))

    return Prepared([out.getvalue()], read)


GGUF_WORDS = [
    b"GGUF",
    *(struct.pack("<I", kind) for kind in ValueType),
    b"general.alignment",
    b"split.no",
    b"split.count",
]
GGUF_WORDS += [struct.pack("<I", kind.ggml_id) for kind in TYPES]

TARGETS = (
    Target(
        name="gguf", title="GGUF header, metadata, tensor table", prepare=_gguf, words=GGUF_WORDS, executions=2_000_000
    ),
    Target(name="gguf-splits", title="GGUF in parts", prepare=_splits, words=GGUF_WORDS, executions=500_000),
    Target(name="safetensors", title="safetensors", prepare=_safetensors, executions=500_000),
    Target(
        name="safetensors-header",
        title="safetensors, header as JSON",
        prepare=_safetensors_header,
        mutate=json_mutator(["dtype", "shape", "data_offsets", "__metadata__"], ["F32", "F16", [0, 8], [8, 8]]),
    ),
    Target(name="safetensors-index", title="index and shards", prepare=_index, executions=200_000),
    Target(
        name="imatrix",
        title="importance matrices, both formats",
        prepare=_imatrix,
        words=[*GGUF_WORDS, b".in_sum2", b".counts"],
    ),
    Target(name="golden", title="golden logits (.npz)", prepare=_golden, executions=100_000),
    Target(
        name="golden-folder",
        title="golden folders (golden.json)",
        prepare=_golden_folder,
        mutate=json_mutator(
            ["format", "prompts", "tokens", "greedy", "text", "tolerances", "vocab_size"], [1, "a", [0], {}]
        ),
        executions=100_000,
    ),
    Target(name="golden-dump", title="dumps of engines (.npz)", prepare=_dump, executions=100_000),
    Target(
        name="golden-array",
        title="golden logits, an array",
        prepare=_golden_array,
        words=[
            b"'descr': '<f4'",
            b"'|O'",
            b"(2, 3)",
            b"(99999999999, )",
            b"True",
            b"\x93NUMPY\x03\x00",
            b"((" * 99,
            b"'<M8'",
        ],
        executions=100_000,
    ),
)
