"""litgpt's layout against its published forward pass, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.families.scratch.litgpt import VARIANTS
from gguf_tools.formats.plain_yaml import read_plain_yaml
from tests.families.scratch.published import Weights, rms, silu
from tests.families.scratch.test_published import worst
from tests.made_checkpoints import Made
from tests.oracle import PROMPTS, reference


def rope(config: Mapping[str, Any], dim: int, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin (length, n_elem), as `build_rope_cache` makes them."""
    n = int(config["rotary_percentage"] * dim)
    freqs = config.get("rope_base", 10000) ** -(torch.arange(0, n, 2).double() / n)
    if stated := config.get("rope_adjustments"):
        waves, size = 2 * math.pi / freqs, stated["original_max_seq_len"]
        smooth = (size / waves - stated["low_freq_factor"]) / (stated["high_freq_factor"] - stated["low_freq_factor"])
        smooth = smooth.clamp(0.0, 1.0)
        freqs = (1 - smooth) * freqs / stated["factor"] + smooth * freqs
    angles = torch.outer(torch.arange(length).double() / config.get("rope_condense_ratio", 1), freqs).repeat(1, 2)
    return angles.cos(), angles.sin()


def forward(w: Weights, config: Mapping[str, Any], tokens: Tensor, variant: str) -> Tensor:
    """Logits (length, vocabulary)."""
    heads, groups, eps, length = config["n_head"], config["n_query_groups"], config["norm_eps"], len(tokens)
    dim = config.get("head_size", config["n_embd"] // heads)
    cos, sin = rope(config, dim, length)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1).double())

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

    def mlp(x: Tensor, prefix: str) -> Tensor:
        names = ("swiglu.w1", "swiglu.w2", "swiglu.w3") if variant == "tinyllama" else ("fc_1", "fc_2", "proj")
        gate, up, down = (prefix + name for name in names)
        return linear(silu(linear(x, gate)) * linear(x, up), down)

    def split(x: Tensor, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
        if variant not in ("legacy qkv", "tinyllama"):
            q, k, v = torch.split(linear(x, f"{prefix}qkv"), [heads * dim, groups * dim, groups * dim], -1)
            return q.view(length, heads, dim), k.view(length, groups, dim), v.view(length, groups, dim)
        per = heads // groups
        rows = linear(x, f"{prefix}attn").view(length, groups, per + 2, dim)
        q, k, v = torch.split(rows, [per, 1, 1], 2)
        return q.reshape(length, heads, dim), k.squeeze(2), v.squeeze(2)

    x = w["transformer.wte.weight"][tokens]
    for n in range(config["n_layer"]):
        prefix = f"transformer.h.{n}."
        q, k, v = split(rms(x, w[f"{prefix}norm_1.weight"], eps), f"{prefix}attn.")
        if config.get("norm_qk"):
            q, k = rms(q, w[f"{prefix}attn.norm_q.weight"], eps), rms(k, w[f"{prefix}attn.norm_k.weight"], eps)
        q, k = turned(q), turned(k).repeat_interleave(heads // groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
        hidden = torch.ones(length, length).triu(1).bool()
        if config.get("sliding_window_size") and config["sliding_window_indices"][n]:
            hidden |= torch.ones(length, length).tril(-config["sliding_window_size"]).bool()
        shares = scores.masked_fill(hidden, -math.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", shares, v.repeat_interleave(heads // groups, 1)).flatten(1)
        x = x + linear(out, f"{prefix}attn.proj")
        y = rms(x, w[f"{prefix}norm_2.weight"], eps)
        if "n_expert" not in config:
            x = x + mlp(y, f"{prefix}mlp.")
            continue
        best, selected = linear(y, f"{prefix}mlp.gate").topk(config["n_expert_per_token"])
        routed = torch.zeros_like(x)
        for row in range(length):
            for share, expert in zip(best[row].softmax(-1), selected[row].tolist(), strict=True):
                routed[row] += share * mlp(y[row], f"{prefix}mlp.experts.{expert}.")
        x = x + routed
    return linear(rms(x, w["transformer.ln_f.weight"], eps), "lm_head")


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_is_the_published_forward(made: Made, variant: str) -> None:
    folder = made("litgpt", variant)
    weights = {name: t.double() for name, t in torch.load(folder / "lit_model.pth", weights_only=True).items()}
    config = yaml.safe_load((folder / "model_config.yaml").read_text("utf-8"))
    wanted = [forward(weights, config, torch.tensor(prompt), variant).numpy() for prompt in PROMPTS[1:]]
    assert worst(reference(load_model(folder), PROMPTS[1:]), wanted) < 1e-24


@pytest.mark.parametrize(
    ("key", "value", "kind", "message"),
    [
        ("norm_class_name", "LayerNorm", UnsupportedError, "norm_class_name is 'LayerNorm'; .*RMSNorm convert"),
        ("parallel_residual", True, UnsupportedError, "parallel_residual is True"),
        ("final_logit_softcapping", 30.0, UnsupportedError, "final_logit_softcapping is 30.0"),
        ("mlp_class_name", "GemmaMLP", UnsupportedError, "mlp_class_name is 'GemmaMLP'"),
        ("value_residual", 0.5, UnsupportedError, "value_residual is a key that litgpt's Config does not have"),
        ("n_head", 3, CheckpointError, "need .* rows in whole groups"),
        ("rotary_percentage", 0.05, CheckpointError, "turn 0 of 16 dimensions"),
        ("rope_adjustments", {"beta_fast": 32}, UnsupportedError, "rope_adjustments has beta_fast"),
        ("rope_adjustments", {"factor": 0}, CheckpointError, r"rope_adjustments\.factor is 0"),
        ("sliding_window_size", 8, CheckpointError, "sliding_window_indices is"),
    ],
)
def test_refusals(made: Made, tmp_path: Path, key: str, value: Any, kind: type[InputError], message: str) -> None:
    source = made("litgpt", "llama")
    config = yaml.safe_load((source / "model_config.yaml").read_text("utf-8")) | {key: value}
    if key == "sliding_window_size":
        config["sliding_window_indices"] = [1]
    (tmp_path / "lit_model.pth").write_bytes((source / "lit_model.pth").read_bytes())
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    with pytest.raises(kind, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    assert "model_config.yaml" in str(error.value)


def test_the_config_of_the_model_before_conversion_is_not_read(made: Made, tmp_path: Path) -> None:
    source = made("litgpt", "llama")
    (tmp_path / "lit_model.pth").write_bytes((source / "lit_model.pth").read_bytes())
    with pytest.raises(CheckpointError, match=r"model_config\.yaml: missing"):
        load_model(tmp_path)
    (tmp_path / "model_config.yaml").write_bytes((source / "model_config.yaml").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama", "rope_theta": 7}', "utf-8")
    assert load_model(tmp_path).spec == load_model(source).spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2\n", "not valid YAML"),
        ("a: &x [1]\nb: *x\n", r"line 1 has an alias"),
        ("a: !!python/object:os.system {}\n", "line 1 has the tag"),
        ("a: 2024-01-01\n", "line 1 has the tag tag:yaml.org,2002:timestamp"),
        ("<<: {a: 1}\n", "line 1 has the tag tag:yaml.org,2002:merge"),
        pytest.param("a: 0x1" + 5000 * "0" + "\n", "line 1 has a number of more than 64 bits", id="long"),
        ("a: x\x7fy\n", r"not valid YAML \(unacceptable character #x007f"),
        ("- 1\n", "holds a YAML list, a mapping expected"),
        ("", "holds a YAML NoneType"),
        ("a: b\n--- \nc: d\n", "not valid YAML"),
    ],
)
def test_yaml_that_is_not_plain(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "model_config.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=message) as error:
        read_plain_yaml(path)
    assert "\n" not in str(error.value)


def test_yaml_that_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "model_config.yaml"
    path.write_text("a: 1\nb: [1.5, true, null]\nc: {d: text}\ne: 1.0e-5\n", "utf-8")
    assert read_plain_yaml(path) == yaml.safe_load(path.read_text("utf-8"))
