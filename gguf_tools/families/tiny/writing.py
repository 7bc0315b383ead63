"""Writes small random checkpoints in published layouts, for `Family.tiny`: weights, config and tokenizer files.

All weights, including norm weights and biases, are far from their initial values, so that a term that a conversion omits
changes the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gguf_tools.formats.safetensors import WIDTHS, Stored, write_safetensors
from gguf_tools.tokenizers.byte_level import byte_characters
from quant.encode import narrow
from quant.types import tensor_type

Shapes = Mapping[str, tuple[int, ...]]
Arrays = dict[str, NDArray[np.float32]]
Dtype = Literal["F32", "F16", "BF16"]

PYTORCH = {"format": "pt"}
"""The `__metadata__` that transformers writes into a safetensors file."""

SPECIAL = ("<|bos|>", "<|eos|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r"), ("Ġ", "a"), ("o", "n"), ("1", "2"))
SMALLEST_VOCABULARY = 256 + len(MERGES) + len(SPECIAL)


def random_tensors(shapes: Shapes, seed: int, *, norm_centre: float = 1.2, gain: Mapping[str, float] = {}) -> Arrays:
    """Random values for every name; the same seed gives the same values.

    A matrix (out, in) scales the size of its input by about 1.3; `gain` maps a substring of names to another factor. Norm
    weights are spread around `norm_centre`, biases around 0, widely enough to stay distinct after rounding to BF16.
    """
    out: Arrays = {}
    for n, (name, shape) in enumerate(shapes.items()):
        noise = np.random.default_rng([seed, n]).standard_normal(shape)
        factor = next((value for key, value in gain.items() if key in name), None)
        if name.endswith("bias"):
            values = noise * (factor or 0.3)
        elif "norm" in name:
            values = noise * (factor or 0.4) + norm_centre
        elif "embed" in name:
            values = noise * (factor or 1.0)
        else:
            values = noise * (factor or 1.3) / shape[-1] ** 0.5
        out[name] = values.astype(np.float32)
    return out


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[np.float32]],
    dtype: Dtype = "F32",
    shards: int = 1,
    metadata: Mapping[str, str] = PYTORCH,
) -> None:
    """Write config.json and the weights as safetensors with this `__metadata__`: one file, or `shards` files and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), "utf-8")
    names = sorted(tensors)
    if shards == 1:
        _write_safetensors(folder / "model.safetensors", {name: tensors[name] for name in names}, dtype, metadata)
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        _write_safetensors(folder / file, part, dtype, metadata)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def _write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: Dtype, metadata: Mapping[str, str]
) -> None:
    stored = [
        Stored(name=name, dtype=dtype, shape=values.shape, width=WIDTHS[dtype], pieces=[_encode(values, dtype)])
        for name, values in tensors.items()
    ]
    write_safetensors(path, stored, metadata, spaced=True)


def _encode(values: NDArray[np.float32], dtype: Dtype) -> bytes:
    return (values.astype("<f4") if dtype == "F32" else narrow(values, tensor_type(dtype))).tobytes()


def write_state_dict(
    path: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    *,
    dtype: Dtype = "F32",
    config: Mapping[str, Any] | None = None,
    wrapped: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights with torch.save, and `config` as config.json in the same folder.

    With `wrapped`, the file is a training checkpoint: the weights under `model`, beside the entries of `wrapped`.
    """
    import torch

    kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    weights = {name: torch.from_numpy(values).to(kind) for name, values in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights if wrapped is None else {"model": weights, **wrapped}, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(dict(config), indent=2), "utf-8")


def write_tiny_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE: all bytes, a few merges, BOS and EOS.

    Embedding rows beyond these tokens are padding. Raises ValueError if `vocab_size` is smaller than their number.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size is {vocab_size}; expected at least {SMALLEST_VOCABULARY}")
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*sorted(byte_characters()), *("".join(merge) for merge in MERGES)]
    added = [
        {"id": len(tokens) + n, "content": token, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for n, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: n for n, token in enumerate(tokens)},
            "merges": [list(merge) for merge in MERGES],
        },
    }
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "add_bos_token": False}
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
