"""A conversion streams: its peak memory follows from its buffers, not from the model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.formats.gguf.header import read_header
from gguf_tools.sources.checkpoint import INDEX
from tests.tiny_models import write_tokenizer

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, WIDTH = 65536, 1024, 6, 16, 8, 128, 3072
SHARD = 60 << 20
MODEL_BYTES = 300_000_000
PEAK_KB = 140_000
"""Measured were 90,000: numpy, the tokenizers library and its vocabulary, and a few MB of buffers."""

CHILD = """
import json, sys
from gguf_tools.cli import run
code = run(sys.argv[1:])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"code": code, "peak": int(status["VmHWM"].split()[0]), "torch": "torch" in sys.modules}))
"""


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """A Qwen3 decoder's tensors, the output tied."""
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for n in range(LAYERS):
        prefix = f"model.layers.{n}."
        yield from (
            (f"{prefix}input_layernorm.weight", (HIDDEN,)),
            (f"{prefix}self_attn.q_proj.weight", (HEADS * HEAD, HIDDEN)),
            (f"{prefix}self_attn.k_proj.weight", (KV_HEADS * HEAD, HIDDEN)),
            (f"{prefix}self_attn.v_proj.weight", (KV_HEADS * HEAD, HIDDEN)),
            (f"{prefix}self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD)),
            (f"{prefix}self_attn.q_norm.weight", (HEAD,)),
            (f"{prefix}self_attn.k_norm.weight", (HEAD,)),
            (f"{prefix}post_attention_layernorm.weight", (HIDDEN,)),
            (f"{prefix}mlp.gate_proj.weight", (WIDTH, HIDDEN)),
            (f"{prefix}mlp.up_proj.weight", (WIDTH, HIDDEN)),
            (f"{prefix}mlp.down_proj.weight", (HIDDEN, WIDTH)),
        )
    yield "model.norm.weight", (HIDDEN,)


def write_shards(folder: Path) -> int:
    """Random bf16 weights in shards of bounded size; gives the bytes of all."""
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for entry in shapes():
        if sum(2 * int(np.prod(shape)) for _, shape in groups[-1]) >= SHARD:
            groups.append([])
        groups[-1].append(entry)
    # Magnitudes between 2^-6 and 2^-5, of either sign.
    pool = np.random.default_rng(0).integers(0, 1 << 16, 1 << 22).astype(np.uint16) & 0x807F | 0x3C80
    weight_map, total = {}, 0
    for n, group in enumerate(groups):
        name, header, end = f"model-{n + 1:05}-of-{len(groups):05}.safetensors", {}, 0
        for tensor, shape in group:
            size = 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
            weight_map[tensor] = name
            end += size
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, end, pool.nbytes):
                stream.write(pool.data.cast("B")[: min(pool.nbytes, end - start)])
        total += end
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    return total


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sharded checkpoint of the shape of a Qwen3-0.6B, with fewer layers."""
    folder = write_tokenizer(tmp_path_factory.mktemp("large") / "source")
    config = {
        "model_type": "qwen3",
        "rms_norm_eps": 1e-6,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert write_shards(folder) > MODEL_BYTES
    yield folder
    for path in folder.glob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize("type_name", ["auto", "q8_0"])
def test_peak_memory_is_far_below_the_model(large: Path, tmp_path: Path, type_name: str) -> None:
    out = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "convert", large, out, "--type", type_name, "--threads", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["code"] == 0, done.stderr
    entries = read_header(out).tensors
    out.unlink()
    assert len(entries) == len(list(shapes()))
    assert report["peak"] < PEAK_KB, report
    assert report["torch"] is False
