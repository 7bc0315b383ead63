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
from gguf_tools.families.tiny.litgpt import VARIANTS
from gguf_tools.formats.plain_yaml import read_plain_yaml
from tests.families.scratch.published import Weights, rms, silu
from tests.families.scratch.test_published import worst
from tests.made_checkpoints import Made
from tests.oracle import PROMPTS, reference


def rope(config: Mapping[str, Any], dim: int, length: int, n: int) -> tuple[Tensor, Tensor]:
    """cos and sin (length, n_elem) of layer n, as `build_rope_cache` makes them."""
    size = int(config.get("rotary_percentage", 0.25) * dim)
    powers = -(torch.arange(0, size, 2).double() / size)
    freqs = config.get("rope_base", 10000) ** powers
    stated = config.get("rope_adjustments")
    if stated and "original_max_seq_len" in stated:
        ratio = stated["original_max_seq_len"] / (2 * math.pi / freqs)
        smooth = (ratio - stated["low_freq_factor"]) / (stated["high_freq_factor"] - stated["low_freq_factor"])
        smooth = smooth.clamp(0.0, 1.0)
        freqs = (1 - smooth) * freqs / stated["factor"] + smooth * freqs
    elif stated:
        freqs = freqs / stated["factor"]
    if config.get("rope_local_base_freq") and config["rope_indices"][n]:
        freqs = config["rope_local_base_freq"] ** powers
    angles = torch.outer(torch.arange(length).double() / config.get("rope_condense_ratio", 1), freqs).repeat(1, 2)
    return angles.cos(), angles.sin()


def forward(w: Weights, stated: Mapping[str, Any], tokens: Tensor, variant: str) -> Tensor:
    """Logits (length, vocabulary)."""
    config = {"norm_eps": 1e-5, "parallel_residual": True, "norm_class_name": "LayerNorm", **stated}
    heads, eps, length, hidden = config["n_head"], config["norm_eps"], len(tokens), config["n_embd"]
    groups, dim = config.get("n_query_groups", heads), config.get("head_size", hidden // heads)
    turn = int(config.get("rotary_percentage", 0.25) * dim)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1).double())

    def norm(x: Tensor, name: str) -> Tensor:
        if config["norm_class_name"] == "RMSNorm":
            return rms(x, w[f"{name}.weight"] + (1 if "Gemma" in config["name"] else 0), eps)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w.get(f"{name}.weight"), w.get(f"{name}.bias"), eps)

    def capped(x: Tensor, key: str) -> Tensor:
        return torch.tanh(x / config[key]) * config[key] if config.get(key) else x

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x[..., :turn].chunk(2, -1)
        out = x[..., :turn] * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
        return torch.cat([out, x[..., turn:]], -1)

    def gelu(x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x, approximate=config.get("gelu_approximate", "none"))

    def mlp(x: Tensor, prefix: str) -> Tensor:
        kind = config.get("mlp_class_name", "GptNeoxMLP")
        if kind == "GptNeoxMLP":
            return linear(gelu(linear(x, f"{prefix}fc")), f"{prefix}proj")
        names = ("swiglu.w1", "swiglu.w2", "swiglu.w3") if variant == "tinyllama" else ("fc_1", "fc_2", "proj")
        gate, up, down = (prefix + name for name in names)
        return linear((gelu if kind == "GemmaMLP" else silu)(linear(x, gate)) * linear(x, up), down)

    def split(x: Tensor, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
        if variant not in ("legacy qkv", "tinyllama"):
            q, k, v = torch.split(linear(x, f"{prefix}qkv"), [heads * dim, groups * dim, groups * dim], -1)
            return q, k, v
        per = heads // groups
        rows = linear(x, f"{prefix}attn").view(length, groups, per + 2, dim)
        q, k, v = torch.split(rows, [per, 1, 1], 2)
        return q.reshape(length, -1), k.reshape(length, -1), v.reshape(length, -1)

    def attention(x: Tensor, prefix: str, n: int) -> Tensor:
        q, k, v = split(x, prefix)
        kind = config.get("norm_qk_type", "default") if config.get("norm_qk") else None
        if kind == "olmo2":
            q, k = norm(q, f"{prefix}norm_q"), norm(k, f"{prefix}norm_k")
        q, k, v = q.view(length, heads, dim), k.view(length, groups, dim), v.view(length, groups, dim)
        if kind == "default":
            q, k = norm(q, f"{prefix}norm_q"), norm(k, f"{prefix}norm_k")
        cos, sin = rope(config, dim, length, n)
        q, k = turned(q, cos, sin), turned(k, cos, sin).repeat_interleave(heads // groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / (config.get("attention_scores_scalar") or dim) ** 0.5
        masked = torch.ones(length, length).triu(1).bool()
        if config.get("sliding_window_size") and config["sliding_window_indices"][n]:
            masked |= torch.ones(length, length).tril(-config["sliding_window_size"]).bool()
        shares = capped(scores, "attention_logit_softcapping").masked_fill(masked, -math.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", shares, v.repeat_interleave(heads // groups, 1)).flatten(1)
        return linear(out, f"{prefix}proj")

    def feed_forward(y: Tensor, prefix: str) -> Tensor:
        if "n_expert" not in config:
            return mlp(y, prefix)
        best, selected = linear(y, f"{prefix}gate").topk(config["n_expert_per_token"])
        routed = torch.zeros_like(y)
        for row in range(length):
            for share, expert in zip(best[row].softmax(-1), selected[row].tolist(), strict=True):
                routed[row] += share * mlp(y[row], f"{prefix}experts.{expert}.")
        return routed

    x = w["transformer.wte.weight"][tokens] * (hidden**0.5 if config.get("scale_embeddings") else 1)
    for n in range(config["n_layer"]):
        prefix = f"transformer.h.{n}."
        normed = norm(x, f"{prefix}norm_1") if config.get("norm_1", True) else x
        out = attention(normed, f"{prefix}attn.", n)
        out = norm(out, f"{prefix}post_attention_norm") if config.get("post_attention_norm") else out
        before, x = x, x + out
        read = before if config["parallel_residual"] else x
        if not config.get("shared_attention_norm"):
            normed = norm(read, f"{prefix}norm_2") if config.get("norm_2", True) else read
        out = feed_forward(normed, f"{prefix}mlp.")
        x = x + (norm(out, f"{prefix}post_mlp_norm") if config.get("post_mlp_norm") else out)
    return capped(linear(norm(x, "transformer.ln_f"), "lm_head"), "final_logit_softcapping")


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
        (
            "norm_class_name",
            "BatchNorm",
            UnsupportedError,
            "norm_class_name is 'BatchNorm'; .*LayerNorm or RMSNorm convert",
        ),
        ("latent_attention", {"q_lora_rank": 8}, UnsupportedError, "latent_attention is"),
        ("rope_interleave", True, UnsupportedError, "rope_interleave is True"),
        ("routed_scaling_factor", 2.5, UnsupportedError, "routed_scaling_factor is 2.5"),
        ("final_logit_softcapping", -1, CheckpointError, "final_logit_softcapping is -1; expected a number above 0"),
        ("shared_attention_norm", True, UnsupportedError, "shared_attention_norm is true without parallel_residual"),
        ("rope_indices", [0, 0, 0], CheckpointError, "rope_indices is given without rope_local_base_freq"),
        ("mlp_class_name", "MoE", UnsupportedError, "mlp_class_name is 'MoE'"),
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


def test_a_config_as_litgpt_saves_it(made: Made, tmp_path: Path) -> None:
    """`save_config` writes every field of the dataclass, those that the model does not use too."""
    source = made("litgpt", "llama")
    stated = yaml.safe_load((source / "model_config.yaml").read_text("utf-8"))
    unused = {
        **dict.fromkeys(("n_expert", "n_expert_per_token"), 0),
        **dict.fromkeys(
            ("attn_bias", "norm_qk", "post_attention_norm", "post_mlp_norm", "shared_attention_norm"), False
        ),
        **dict.fromkeys(("rope_interleave", "norm_topk_prob", "scale_embeddings", "lm_head_bias"), False),
        **dict.fromkeys(("n_shared_expert", "n_expert_groups", "n_topk_groups", "n_topk_scores_per_group"), None),
        **dict.fromkeys(("first_k_dense_replace", "moe_intermediate_size", "attention_scores_scalar"), None),
        **dict.fromkeys(("attention_logit_softcapping", "final_logit_softcapping", "latent_attention"), None),
        **dict.fromkeys(("rope_local_base_freq", "rope_indices", "rope_adjustments"), None),
        **dict.fromkeys(("sliding_window_size", "sliding_window_indices"), None),
        **{"norm_1": True, "norm_2": True, "norm_qk_type": "default", "gelu_approximate": "none"},
        **{"routed_scaling_factor": 1.0, "rope_base": 10000, "rope_condense_ratio": 1, "head_size": 16},
        **{"hf_config": {"org": "x", "name": "tiny"}, "padding_multiple": 512},
    }
    (tmp_path / "lit_model.pth").write_bytes((source / "lit_model.pth").read_bytes())
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump({**unused, **stated}), "utf-8")
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
        ("- 1\n", "holds a YAML list; expected a mapping"),
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
