"""A random checkpoint of any size, written as fast as the disk takes it: the same few megabytes of weights again and again."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import numpy as np

from benchmarks.shapes import Qwen3Shape
from gguf_tools.bundled import bundled_model

SHARD_BYTES = 1 << 30


def write_random(folder: Path, shape: Qwen3Shape, shard_bytes: int = SHARD_BYTES) -> int:
    """A bf16 checkpoint of small random weights with the bundled tokenizer, written quickly; bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    # Magnitudes between 2^-6 and 2^-5, of either sign.
    pool = (np.random.default_rng(0).integers(0, 1 << 16, 1 << 22).astype(np.uint16) & 0x807F | 0x3C80).tobytes()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, dims in shape.tensors().items():
        if sum(2 * prod(other) for other in shards[-1].values()) >= shard_bytes:
            shards.append({})
        shards[-1][name] = dims
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        file, end = f"model-{number:05d}-of-{len(shards):05d}.safetensors", 0
        header = {}
        for name, dims in tensors.items():
            size = 2 * prod(dims)
            header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": (end, end + size)}
            weight_map[name] = file
            end += size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, len(pool)):
                stream.write(pool[: end - start])
        total += end
    (folder / "config.json").write_text(json.dumps(shape.config()), "utf-8")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model("dense") / name, folder / name)
    return total
