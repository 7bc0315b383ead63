"""Packs integers as the formats' documents say, one integer at a time, and writes tiny checkpoints of such layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_tools.families.tiny import attention as tiny
from gguf_tools.families.tiny.writing import random_tensors, write_tiny_tokenizer
from gguf_tools.formats.safetensors import Stored, write_safetensors

Array = NDArray[Any]
Arrays = dict[str, Array]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)
DTYPES = {"f4": "F32", "f2": "F16", "i4": "I32", "u4": "U32", "i1": "I8", "u1": "U8", "i8": "I64"}


def stream(row: Sequence[int], bits: int, word: int = 32) -> list[int]:
    """Words of `word` bits with the row's integers one after another, the first in the lowest bits."""
    whole = sum(int(value) << (bits * at) for at, value in enumerate(row))
    count = -(-len(row) * bits // word)
    return [whole >> (word * at) & ((1 << word) - 1) for at in range(count)]


def spaced(row: Sequence[int], bits: int) -> list[int]:
    """Words of 32 bits with 32 // bits integers each."""
    per = 32 // bits
    return [stream(row[at : at + per], bits)[0] for at in range(0, len(row), per)]


def rows(codes: Array, bits: int, kind: str = "i4", pack: Callable[..., list[int]] = stream) -> Array:
    """Each row packed; of more than two axes the last is the row."""
    flat = [pack(row.tolist(), bits) for row in codes.reshape(-1, codes.shape[-1])]
    return np.array(flat, np.uint32).view(kind).reshape(*codes.shape[:-1], -1)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Random integers (outputs, inputs), scales and zero points (outputs, groups) of a layer, and the group of each input."""

    codes: Array
    scales: Array
    zeros: Array
    index: Array

    @property
    def expected(self) -> Array:
        """scale · (q - zero), which is exact in float32 for scales of 16 bits."""
        whole = self.codes.astype(np.int64) - self.zeros.astype(np.int64)[:, self.index]
        exact = whole.astype(np.float64) * self.scales.astype(np.float64)[:, self.index]
        return exact.astype(np.float32)


def layer(
    rng: np.random.Generator,
    outputs: int,
    inputs: int,
    *,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    shuffled: bool = False,
    scale: str = "f2",
) -> Layer:
    """A random layer whose every group has the smallest and the largest integer."""
    codes = rng.integers(0, 1 << bits, (outputs, inputs))
    index = np.arange(inputs) // group
    count = int(index[-1]) + 1
    for at in range(count):
        codes[:, at * group], codes[:, at * group + 1] = 0, (1 << bits) - 1
    index = rng.permutation(index) if shuffled else index
    scales = rng.uniform(0.005, 0.05, (outputs, count)).astype(scale)
    zeros = np.full((outputs, count), 1 << (bits - 1)) if symmetric else rng.integers(1, 1 << bits, (outputs, count))
    return Layer(codes=codes, scales=scales, zeros=zeros, index=index)


def gptq(made: Layer, bits: int = 4, *, first: bool = True, indexed: bool = True) -> Arrays:
    """As GPTQ packs a layer; `first`: in the format that stores zero - 1."""
    tensors = {
        "qweight": np.ascontiguousarray(rows(made.codes, bits).T),
        "scales": np.ascontiguousarray(made.scales.T),
        "qzeros": rows(made.zeros.T - (1 if first else 0), bits),
    }
    return {**tensors, "g_idx": made.index.astype("i4")} if indexed else tensors


def _awq(numbers: Array) -> Array:
    ordered = numbers.reshape(len(numbers), -1, 8)[:, :, list(AWQ_ORDER)].reshape(numbers.shape)
    return rows(ordered, 4)


def awq(made: Layer) -> Arrays:
    """As AutoAWQ's version `gemm` packs a layer."""
    scales = np.ascontiguousarray(made.scales.T)
    return {"qweight": _awq(made.codes.T), "qzeros": _awq(made.zeros.T), "scales": scales}


def awq_gemv(made: Layer) -> Arrays:
    """As AutoAWQ's version `gemv` packs a layer, with groups in words of eight."""
    room = -(-made.zeros.shape[1] // 8) * 8
    wide = ((0, 0), (0, room - made.zeros.shape[1]))
    return {
        "qweight": rows(made.codes, 4),
        "qzeros": rows(np.pad(made.zeros, wide), 4),
        "scales": np.pad(made.scales, wide),
    }


def compressed(
    made: Layer,
    bits: int = 4,
    *,
    pack: Callable[..., list[int]] = stream,
    symmetric: bool = True,
    indexed: bool = False,
) -> Arrays:
    """As compressed-tensors packs a layer in the format pack-quantized."""
    tensors = {
        "weight_packed": rows(made.codes, bits, pack=pack),
        "weight_scale": made.scales,
        "weight_shape": np.array(made.codes.shape, "i8"),
    }
    if not symmetric:
        tensors["weight_zero_point"] = np.ascontiguousarray(rows(made.zeros.T, bits, pack=pack).T)
    return {**tensors, "weight_g_idx": made.index.astype("i4")} if indexed else tensors


def int_quantized(made: Layer, *, symmetric: bool = True) -> Arrays:
    """As compressed-tensors stores a layer of 8 bits in the format int-quantized."""
    tensors = {"weight": (made.codes - 128).astype("i1"), "weight_scale": made.scales}
    return tensors if symmetric else {**tensors, "weight_zero_point": (made.zeros - 128).astype("i1")}


def torchao(made: Layer, **changed: object) -> tuple[Arrays, dict[str, str]]:
    """As torchao saves the layer `a` of 4 bits: tensors, and the file's metadata, some attributes of which are `changed`."""
    tensors = {
        "a._weight_qdata": (made.codes - 8).astype("i1"),
        "a._weight_scale": made.scales,
        "a._weight_zero_point": (made.zeros - 8).astype("i1"),
    }
    dtypes = {
        key: {"_type": "torch.dtype", "_data": value} for key, value in (("dtype", "float16"), ("target_dtype", "int4"))
    }
    data = {**dtypes, "block_size": [1, 32], "activation_quantization": None}
    whole = {"_type": "IntxUnpackedToInt8Tensor", "_data": data, "_tensor_data_names": ["qdata", "scale", "zero_point"]}
    return tensors, {"a.weight": json.dumps({**whole, **changed}), "tensor_names": '["a.weight"]'}


@dataclass(frozen=True)
class Made:
    """A written checkpoint: its folder, and the numbers of each packed weight by name."""

    folder: Path
    expected: Mapping[str, Array] = field(default_factory=dict)


def save(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file; arrays of uint16 named `….bf16` are stored as BF16 under the name without that."""
    stored = []
    for name, values in tensors.items():
        bf16 = name.endswith(".bf16")
        stored.append(
            Stored(
                name=name.removesuffix(".bf16"),
                dtype="BF16" if bf16 else DTYPES[values.dtype.str[1:]],
                shape=values.shape,
                width=values.dtype.itemsize,
                pieces=[np.ascontiguousarray(values).tobytes()],
            )
        )
    write_safetensors(path, stored, metadata or {"format": "pt"})


def checkpoint(
    folder: Path,
    pack: Callable[[np.random.Generator, int, int], tuple[Arrays, Array]],
    config: Mapping[str, Any],
    *,
    extra: Mapping[str, Array] | None = None,
    variant: tiny.Variant | None = None,
    metadata: Mapping[str, str] | None = None,
    seed: int = 1,
) -> Made:
    """A tiny Llama with every matrix inside its layers packed by `pack` (rng, outputs, inputs), the rest in F16."""
    variant = variant or tiny.LLAMA["plain"]
    rng = np.random.default_rng(seed)
    tensors: Arrays = {}
    expected: Arrays = {}
    for name, values in random_tensors(tiny.shapes(variant), seed).items():
        if ".layers." in name and values.ndim == 2:
            stem = name.removesuffix(".weight")
            parts, expected[name] = pack(rng, *values.shape)
            tensors |= {f"{stem}.{last}": part for last, part in parts.items()}
        else:
            tensors[name] = values.astype("f2")
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", tensors | dict(extra or {}), metadata)
    (folder / "config.json").write_text(json.dumps({**tiny.BASE, **variant.config, **config}), "utf-8")
    write_tiny_tokenizer(folder, tiny.VOCAB)
    return Made(folder, expected)
