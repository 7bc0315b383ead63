"""Meta's layout against its published forward pass, with the files read by the test's own code."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.families.scratch.meta_llama import CONFIGS
from gguf_tools.families.tiny.writing import write_state_dict
from tests.families.scratch.published import Weights, attend, rms, silu
from tests.families.scratch.test_published import worst
from tests.made_checkpoints import Made
from tests.oracle import PROMPTS, reference

SPLIT_COLUMNS = ("wo.weight", "w2.weight")


def read(folder: Path, variant: str) -> tuple[Weights, dict[str, Any]]:
    """Weights in float64 under Meta's names, and `ModelArgs`."""
    if variant.startswith("llama2.c bin"):
        return read_bin(folder / "model.bin")
    if variant == "llama2.c pt":
        loaded = torch.load(folder / "ckpt.pt", weights_only=True)
        weights = {name.removeprefix("_orig_mod."): tensor.double() for name, tensor in loaded["model"].items()}
        return weights, loaded["model_args"]
    config = json.loads((folder / "params.json").read_text("utf-8"))
    shards = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.p*t*"))]
    weights = {}
    for name, tensor in shards[0].items():
        parts = [shard[name].double() for shard in shards]
        columns = name.endswith(SPLIT_COLUMNS) or (name.startswith("tok_") and variant.startswith("llama 2"))
        weights[name] = tensor.double() if tensor.dim() == 1 else torch.cat(parts, 1 if columns else 0)
    return {name.replace("qkv_linear.", "").replace("lm_head", "output"): w for name, w in weights.items()}, config


def read_bin(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The order of llama2.c's run.c (version 0) and export.py (version 1)."""
    data = path.read_bytes()
    first = struct.unpack("<i", data[:4])[0] == 0x616B3432
    dim, wide, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", data[8:36] if first else data[:28])
    tied = data[36] == 1 if first else vocab > 0
    values = np.frombuffer(data[256 if first else 28 :], "<f4").astype(np.float64)
    at = 0
    weights: dict[str, Tensor] = {}

    def take(name: str, *shape: int) -> None:
        nonlocal at
        numbers = torch.from_numpy(values[at : at + math.prod(shape)].reshape(shape))
        at += numbers.numel()
        if "{n}" in name:
            weights.update({name.format(n=n): numbers[n] for n in range(layers)})
        else:
            weights[name] = numbers

    keys, vocab = dim // heads * kv_heads, abs(vocab)
    matrices = (
        ("attention.wq", dim, dim), ("attention.wk", keys, dim), ("attention.wv", keys, dim), ("attention.wo", dim, dim),
    )  # fmt: skip
    mlp = (("feed_forward.w1", wide, dim), ("feed_forward.w2", dim, wide), ("feed_forward.w3", wide, dim))
    if not first:
        take("tok_embeddings.weight", vocab, dim)
    take("layers.{n}.attention_norm.weight", layers, dim)
    if first:
        take("layers.{n}.ffn_norm.weight", layers, dim)
        take("norm.weight", dim)
        take("tok_embeddings.weight", vocab, dim)
    for name, rows, columns in matrices:
        take(f"layers.{{n}}.{name}.weight", layers, rows, columns)
    if not first:
        take("layers.{n}.ffn_norm.weight", layers, dim)
    for name, rows, columns in mlp:
        take(f"layers.{{n}}.{name}.weight", layers, rows, columns)
    if not first:
        take("norm.weight", dim)
        at += length * dim // heads  # tables of rope
    if not tied:
        take("output.weight", vocab, dim)
    assert at == len(values)
    return weights, {"dim": dim, "n_layers": layers, "n_heads": heads, "n_kv_heads": kv_heads}


def angles(config: Mapping[str, Any], dim: int, length: int) -> Tensor:
    """Angles (length, dim / 2); `use_scaled_rope` as Meta's `apply_scaling` does."""
    freqs = config.get("rope_theta", 10000.0) ** -(torch.arange(0, dim, 2).double() / dim)
    if config.get("use_scaled_rope"):
        waves = 2 * math.pi / freqs
        smooth = (8192 / waves - 1) / (4 - 1)
        between = (1 - smooth) * freqs / 8 + smooth * freqs
        freqs = torch.where(waves > 8192, freqs / 8, torch.where(waves < 8192 / 4, freqs, between))
    return torch.outer(torch.arange(length).double(), freqs)


def forward(w: Weights, config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary)."""
    heads, kv_heads, eps = config["n_heads"], config["n_kv_heads"], config.get("norm_eps", 1e-5)
    dim, length = w["layers.0.attention.wq.weight"].shape[0] // heads, len(tokens)
    turn = torch.polar(torch.ones(length, dim // 2).double(), angles(config, dim, length))[:, None]

    def turned(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(length, -1, dim // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn).reshape(x.shape)

    def mlp(x: Tensor, prefix: str) -> Tensor:
        w1, w2, w3 = (w[f"{prefix}w{n}.weight"] for n in (1, 2, 3))
        return (silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    x = w["tok_embeddings.weight"][tokens]
    for n in range(config["n_layers"]):
        prefix = f"layers.{n}."
        y = rms(x, w[f"{prefix}attention_norm.weight"], eps)
        q, k, v = (
            (y @ w[f"{prefix}attention.{name}.weight"].T).view(length, count, dim)
            for name, count in (("wq", heads), ("wk", kv_heads), ("wv", kv_heads))
        )
        x = x + attend(turned(q), turned(k), v) @ w[f"{prefix}attention.wo.weight"].T
        y = rms(x, w[f"{prefix}ffn_norm.weight"], eps)
        if "moe" not in config:
            x = x + mlp(y, f"{prefix}feed_forward.")
            continue
        best, selected = (y @ w[f"{prefix}feed_forward.gate.weight"].T).topk(config["moe"]["num_experts_per_tok"])
        rows = [
            sum(
                share * mlp(y[row], f"{prefix}feed_forward.experts.{expert}.")
                for share, expert in zip(best[row].softmax(-1), selected[row].tolist(), strict=True)
            )
            for row in range(length)
        ]
        x = x + torch.stack([torch.as_tensor(row) for row in rows])
    return rms(x, w["norm.weight"], eps) @ w.get("output.weight", w["tok_embeddings.weight"]).T


@pytest.mark.parametrize("variant", CONFIGS)
def test_reference_is_the_published_forward(made: Made, variant: str) -> None:
    folder = made("meta-llama", variant)
    weights, config = read(folder, variant)
    wanted = [forward(weights, config, torch.tensor(prompt)).numpy() for prompt in PROMPTS[1:]]
    assert worst(reference(load_model(folder), PROMPTS[1:]), wanted) < 1e-24


def damaged(made: Made, tmp_path: Path, variant: str, change: Any) -> Path:
    """A copy of the variant's `.bin` with its bytes changed."""
    path = tmp_path / "model.bin"
    path.write_bytes(change((made("meta-llama", variant) / "model.bin").read_bytes()))
    return path


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("llama2.c bin 1", lambda data: data[:-4], "bytes; expected .* from its header"),
        ("llama2.c bin 1", lambda data: data + b"\0\0\0\0", "bytes; expected .* from its header"),
        ("llama2.c bin 1", lambda data: data[:100], "fewer than the 256 of its header"),
        ("llama2.c bin 1", lambda data: data[:4] + struct.pack("<i", 2) + data[8:], "version 2 .*int8 groups"),
        ("llama2.c bin 1", lambda data: data[:4] + struct.pack("<i", 9) + data[8:], "version 9 .*not known"),
        (
            "llama2.c bin 1",
            lambda data: data[:20] + struct.pack("<i", 7) + data[24:],
            "sizes that do not fit each other",
        ),
        ("llama2.c bin 1", lambda data: data[:16] + struct.pack("<i", 1 << 30) + data[20:], "do not fit each other"),
        ("llama2.c bin 0", lambda data: data[:-4], "not a torch state dict|cannot be read as a torch state dict"),
    ],
)
def test_bin_that_is_damaged(made: Made, tmp_path: Path, variant: str, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_model(damaged(made, tmp_path, variant, change))
    assert "\n" not in str(error.value)


def meta(folder: Path, config: Mapping[str, Any], *shards: Mapping[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(config), "utf-8")
    for n, shard in enumerate(shards):
        write_state_dict(folder / f"consolidated.{n:02}.pth", shard)
    return folder


def shards_of(made: Made) -> list[dict[str, Any]]:
    folder = made("meta-llama", "llama 3, two shards")
    loaded = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]
    return [{name: tensor.numpy() for name, tensor in each.items()} for each in loaded]


def test_shards_that_do_not_fit(made: Made, tmp_path: Path) -> None:
    config = CONFIGS["llama 3, two shards"]
    first, second = shards_of(made)
    lacking = {name: values for name, values in second.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"consolidated\.01\.pth: tensor norm\.weight is missing"):
        load_model(meta(tmp_path / "lacking", config, first, lacking))
    with pytest.raises(CheckpointError, match=r"norm\.weight differs between the shards"):
        load_model(meta(tmp_path / "other", config, first, {**second, "norm.weight": second["norm.weight"] + 1}))
    cut = {**second, "layers.0.feed_forward.w1.weight": second["layers.0.feed_forward.w1.weight"][1:]}
    with pytest.raises(CheckpointError, match=r"w1\.weight has shapes .* in the shards"):
        load_model(meta(tmp_path / "cut", config, first, cut))
    gap = meta(tmp_path / "gap", config, first, second)
    (gap / "consolidated.00.pth").rename(gap / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: missing"):
        load_model(gap)


def test_config_that_is_of_another_model(made: Made, tmp_path: Path) -> None:
    config, shards = CONFIGS["llama 3, two shards"], shards_of(made)
    with pytest.raises(UnsupportedError, match=r"params\.json: qk_norm is True, a field that"):
        load_model(meta(tmp_path / "other", {**config, "qk_norm": True}, *shards))
    load_model(meta(tmp_path / "off", {**config, "qk_norm": False}, *shards))
    without = {key: value for key, value in config.items() if key != "n_heads"}
    with pytest.raises(CheckpointError, match=r"params\.json: n_heads is missing"):
        load_model(meta(tmp_path / "none", without, *shards))
    with pytest.raises(CheckpointError, match=r"n_heads 3 and heads of 16 do not fit .*wk of 24"):
        load_model(meta(tmp_path / "three", {**config, "n_heads": 3}, *shards))


def test_file_by_itself(made: Made, tmp_path: Path) -> None:
    """The `.bin` and the `.pt` know their own config; a shard alone is not the model."""
    for variant, name in (("llama2.c bin 1", "model.bin"), ("llama2.c pt", "ckpt.pt")):
        assert load_model(made("meta-llama", variant) / name).spec.layers
    with pytest.raises(CheckpointError, match="is one of several shards of a model; give the folder"):
        load_model(made("meta-llama", "llama 3, two shards") / "consolidated.00.pth")
    alone = meta(tmp_path / "alone", CONFIGS["llama 3, two shards"], shards_of(made)[0])
    with pytest.raises(CheckpointError, match="n_heads 4 and heads of 12 do not fit"):
        load_model(alone)
