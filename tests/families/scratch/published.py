"""The published forward passes of the custom families, written from their descriptions: straight, slow, in float64.

They share nothing with the package: weights come from torch and safetensors themselves, under their published names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = Mapping[str, Tensor]


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in float64 without a wrapper or a prefix, and the config."""
    config: dict[str, Any] = {}
    if (folder / "config.json").exists():
        config = json.loads((folder / "config.json").read_text("utf-8"))
    files = [path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".safetensors")]
    assert len(files) == 1
    loaded: Any = load_file(files[0]) if files[0].suffix == ".safetensors" else torch.load(files[0], weights_only=False)
    if "model" in loaded:
        named = loaded.get("model_args") or loaded.get("cfg")
        config = named or {**vars(loaded["config"]), "activation_function": "gelu_new"}
        loaded = loaded["model"]
    return {name.removeprefix("_orig_mod."): tensor.double() for name, tensor in loaded.items()}, config


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def turned_halves(x: Tensor, theta: float) -> Tensor:
    """Rope of x (length, heads, dim): dimension i turns with i + dim/2."""
    length, _, dim = x.shape
    angles = torch.outer(torch.arange(length).double(), theta ** (-torch.arange(0, dim, 2).double() / dim))
    turned = (
        torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.cat([turned.real, turned.imag], -1)


def turned_pairs(x: Tensor, theta: float, dims: int) -> Tensor:
    """Rope of the first `dims` dimensions of x (length, heads, dim): 2i turns with 2i + 1."""
    length, heads, _ = x.shape
    angles = torch.outer(torch.arange(length).double(), theta ** (-torch.arange(0, dims, 2).double() / dims))
    pairs = torch.view_as_complex(x[..., :dims].reshape(length, heads, dims // 2, 2).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None])
    return torch.cat([turned.reshape(length, heads, dims), x[..., dims:]], -1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (length, heads, dim) on k and v (length, kv_heads, dim): (length, heads · dim)."""
    length, heads, dim = q.shape
    group = heads // k.shape[1]
    out = torch.zeros(length, heads, v.shape[-1], dtype=torch.double)
    for head in range(heads):
        for position in range(length):
            scores = k[: position + 1, head // group] @ q[position, head] / dim**0.5
            out[position, head] = scores.softmax(0) @ v[: position + 1, head // group]
    return out.flatten(1)


def simplified_qwen_moe(w: Weights, config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of the simplified Qwen-MoE."""
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    dim = config["hidden_size"] // heads

    def mlp(x: Tensor, prefix: str) -> Tensor:
        gate, up, down = (w[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    x = w["model.embed_tokens.weight"][tokens]
    for n in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{n}."
        y = rms(x, w[f"{prefix}input_layernorm.weight"], eps)
        q, k, v = (
            (y @ w[f"{prefix}self_attn.{name}_proj.weight"].T).view(len(tokens), count, dim)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = turned_halves(q, config["rope_theta"]), turned_halves(k, config["rope_theta"])
        x = x + attend(q, k, v) @ w[f"{prefix}self_attn.o_proj.weight"].T
        y = rms(x, w[f"{prefix}post_attention_layernorm.weight"], eps)
        if n % config["moe_layer_freq"]:
            x = x + mlp(y, f"{prefix}mlp.")
            continue
        logits = y @ w[f"{prefix}mlp.gate.gate.weight"].T
        best, chosen = logits.topk(config["num_experts_per_tok"])
        shares = best.softmax(-1)
        out = mlp(y, f"{prefix}mlp.shared_expert.ffn.")
        for row in range(len(tokens)):
            for share, expert in zip(shares[row], chosen[row].tolist(), strict=True):
                out[row] += share * mlp(y[row], f"{prefix}mlp.experts.{expert}.ffn.")
        x = x + out
    return rms(x, w["model.norm.weight"], eps) @ w["lm_head.weight"].T


def from_scratch_qwen3(w: Weights, _: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of the from-scratch Qwen3."""
    hidden = w["tok_emb.weight"].shape[1]
    x = w["tok_emb.weight"][tokens] * hidden**0.5
    for n in range(sum(name.endswith("norm1.weight") for name in w)):
        prefix = f"blocks.{n}."
        norms = {name: w[f"{prefix}attention.{name}_norm.weight"] for name in "qk"}
        y = rms(x, w[f"{prefix}norm1.weight"], 1e-6)
        q, k, v = (
            (y @ w[f"{prefix}attention.W_{name}.weight"].T).view(len(tokens), -1, len(norms["q"]))
            for name in ("query", "key", "value")
        )
        q, k = (turned_halves(rms(part, norms[name], 1e-6), 10000.0) for name, part in (("q", q), ("k", k)))
        x = x + attend(q, k, v) @ w[f"{prefix}attention.out_proj.weight"].T
        y = rms(x, w[f"{prefix}norm2.weight"], 1e-6)
        gate, up, down = (w[f"{prefix}feed_forward.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (silu(y @ gate.T) * (y @ up.T)) @ down.T
    return rms(x, w["final_norm.weight"], 1e-6) @ w["out_head.weight"].T


def moe_model(w: Weights, config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of MoEModel."""
    eps, dim = config["rms_eps"], config["head_dim"]

    def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    def mlp(x: Tensor, prefix: str) -> Tensor:
        return swiglu(x, *(w[f"{prefix}{name}.weight"] for name in ("gate", "up", "down")))

    def expert(x: Tensor, prefix: str, number: int) -> Tensor:
        if f"{prefix}gate" in w:
            return swiglu(x, *(w[f"{prefix}{name}"][number] for name in ("gate", "up", "down")))
        return mlp(x, f"{prefix}routed_experts.{number}.")

    x = w["embed.weight"][tokens]
    for n in range(config["n_layers"]):
        prefix = f"blocks.{n}."
        y = rms(x, w[f"{prefix}attn_norm.weight"], eps)
        q, k, v = ((y @ w[f"{prefix}attn.{name}_proj.weight"].T).view(len(tokens), -1, dim) for name in "qkv")
        q, k = (
            turned_pairs(
                rms(part, w[f"{prefix}attn.{name}_norm.weight"], eps) * w[f"{prefix}attn.{name}_norm.gain"],
                config["rope_theta"],
                config["rope_partial"],
            )
            for name, part in (("q", q), ("k", k))
        )
        if config["smear_gate"]:
            v = v * w[f"{prefix}attn.smear"].view(1, -1, 1)
        x = x + attend(q, k, v) @ w[f"{prefix}attn.o_proj.weight"].T
        y = rms(x, w[f"{prefix}ffn_norm.weight"], eps)
        if n < config["moe_first_layer"]:
            x = x + mlp(y, f"{prefix}ffn.")
            continue
        logits = y @ w[f"{prefix}ffn.router.w"].T
        chosen = (logits + w[f"{prefix}ffn.router.bias"]).topk(config["top_k"]).indices
        out = mlp(y, f"{prefix}ffn.shared_expert.")
        for row in range(len(tokens)):
            shares = logits[row, chosen[row]].sigmoid()
            for share, number in zip(shares / shares.sum(), chosen[row].tolist(), strict=True):
                out[row] += share * expert(y[row], f"{prefix}ffn.", number)
        x = x + out
    head = w["embed.weight"] if config["tie_embeddings"] else w["lm_head.weight"]
    scale = float((config["mup_base_d"] / config["d_model"]) ** 0.5)
    return rms(x, w["final_norm.weight"], eps) @ head.T * scale


def book(w: Weights, config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of rasbt's Qwen3Model and Llama3Model."""
    llama = "final_norm.weight" in w
    weight, eps = ("weight", 1e-5) if llama else ("scale", 1e-6)
    theta = config.get("rope_base", 5e5 if llama else 1e6)
    theta *= config.get("context_length", 1) / config["orig_context_length"] if "orig_context_length" in config else 1.0
    dim = w["trf_blocks.0.att.W_query.weight"].shape[0] // config["n_heads"] if llama else None
    dim = dim or len(w["trf_blocks.0.att.q_norm.scale"])
    freqs = theta ** -(torch.arange(0, dim, 2).double() / dim)
    if stated := config.get("rope_freq"):
        low, high, length = stated["low_freq_factor"], stated["high_freq_factor"], stated["original_context_length"]
        waves = 2 * torch.pi / freqs
        smooth = (length / waves - low) / (high - low)
        between = (1 - smooth) * freqs / stated["factor"] + smooth * freqs
        scaled = torch.where(waves > length / low, freqs / stated["factor"], freqs)
        freqs = torch.where((waves <= length / low) & (waves >= length / high), between, scaled)
    angles = torch.outer(torch.arange(len(tokens)).double(), freqs).repeat(1, 2)[:, None]

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def mlp(x: Tensor, prefix: str, expert: str = "") -> Tensor:
        fc1, fc2, fc3 = (w[f"{prefix}fc{n}{expert}.weight"] for n in (1, 2, 3))
        return (silu(x @ fc1.T) * (x @ fc2.T)) @ fc3.T

    x = w["tok_emb.weight"][tokens]
    for n in range(sum(name.endswith(f"norm1.{weight}") for name in w)):
        prefix = f"trf_blocks.{n}."
        y = rms(x, w[f"{prefix}norm1.{weight}"], eps)
        q, k, v = (
            (y @ w[f"{prefix}att.W_{name}.weight"].T).view(len(tokens), -1, dim) for name in ("query", "key", "value")
        )
        if not llama:
            q, k = rms(q, w[f"{prefix}att.q_norm.scale"], eps), rms(k, w[f"{prefix}att.k_norm.scale"], eps)
        x = x + attend(turned(q), turned(k), v) @ w[f"{prefix}att.out_proj.weight"].T
        y = rms(x, w[f"{prefix}norm2.{weight}"], eps)
        if f"{prefix}ff.gate.weight" not in w:
            x = x + mlp(y, f"{prefix}ff.")
            continue
        best, selected = (y @ w[f"{prefix}ff.gate.weight"].T).topk(config["num_experts_per_tok"])
        out = torch.zeros_like(x)
        for row in range(len(tokens)):
            for share, expert in zip(best[row].softmax(-1), selected[row].tolist(), strict=True):
                out[row] += share * mlp(y[row], f"{prefix}ff.", f".{expert}")
        x = x + out
    return rms(x, w[f"final_norm.{weight}"], eps) @ w["out_head.weight"].T


def minimind(w: Weights, stated: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of MiniMind 2 and 3, dense or with experts; without a config by the defaults of its class."""
    third = "model.layers.0.self_attn.q_norm.weight" in w
    count = sum(name.endswith("input_layernorm.weight") for name in w)
    config = stated or {
        **{
            "num_attention_heads": 4 if third else 8,
            "num_key_value_heads": 2 if third else 4,
            "num_hidden_layers": count,
        },
        **{"rms_norm_eps": 1e-6 if third else 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 1 if third else 2},
        "n_shared_experts": 0 if third else 1,
    }
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]

    def mlp(x: Tensor, prefix: str) -> Tensor:
        gate, up, down = (w[f"{prefix}{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    x = w["model.embed_tokens.weight"][tokens]
    for n in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{n}."
        y = rms(x, w[f"{prefix}input_layernorm.weight"], eps)
        q, k, v = (
            (y @ w[f"{prefix}self_attn.{name}_proj.weight"].T).view(len(tokens), count, -1)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        if f"{prefix}self_attn.q_norm.weight" in w:
            q, k = (rms(part, w[f"{prefix}self_attn.{name}_norm.weight"], eps) for name, part in (("q", q), ("k", k)))
        q, k = turned_halves(q, config["rope_theta"]), turned_halves(k, config["rope_theta"])
        x = x + attend(q, k, v) @ w[f"{prefix}self_attn.o_proj.weight"].T
        y = rms(x, w[f"{prefix}post_attention_layernorm.weight"], eps)
        if f"{prefix}mlp.gate.weight" not in w:
            x = x + mlp(y, f"{prefix}mlp.")
            continue
        scores, selected = (y @ w[f"{prefix}mlp.gate.weight"].T).softmax(-1).topk(config["num_experts_per_tok"])
        scores = scores / (scores.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(x)
        for row in range(len(tokens)):
            for share, expert in zip(scores[row], selected[row].tolist(), strict=True):
                out[row] += share * mlp(y[row], f"{prefix}mlp.experts.{expert}.")
        for number in range(config.get("n_shared_experts", 0)):
            out = out + mlp(y, f"{prefix}mlp.shared_experts.{number}.")
        x = x + out
    return rms(x, w["model.norm.weight"], eps) @ w["lm_head.weight"].T


def nanogpt(w: Weights, config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of nanoGPT and minGPT."""
    hidden, length = config["n_embd"], len(tokens)

    def norm(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.layer_norm(x, (hidden,), w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def gelu(x: Tensor) -> Tensor:
        if config.get("activation_function") != "gelu_new":
            return x * (1 + torch.erf(x / 2**0.5)) / 2
        return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2

    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:length]
    for n in range(config["n_layer"]):
        prefix = f"transformer.h.{n}."
        qkv = linear(norm(x, f"{prefix}ln_1"), f"{prefix}attn.c_attn")
        q, k, v = (part.view(length, config["n_head"], -1) for part in torch.split(qkv, hidden, -1))
        x = x + linear(attend(q, k, v), f"{prefix}attn.c_proj")
        x = x + linear(gelu(linear(norm(x, f"{prefix}ln_2"), f"{prefix}mlp.c_fc")), f"{prefix}mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


def book_gpt(w: Weights, config: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of rasbt's GPTModel."""
    length = len(tokens)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return w[f"{name}.scale"] * (x - mean) / torch.sqrt(var + 1e-5) + w[f"{name}.shift"]

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    x = w["tok_emb.weight"][tokens] + w["pos_emb.weight"][:length]
    for n in range(sum(name.endswith("norm1.scale") for name in w)):
        prefix = f"trf_blocks.{n}."
        y = norm(x, f"{prefix}norm1")
        heads = (
            linear(y, f"{prefix}att.W_{name}").view(length, config["n_heads"], -1) for name in ("query", "key", "value")
        )
        x = x + linear(attend(*heads), f"{prefix}att.out_proj")
        y = linear(norm(x, f"{prefix}norm2"), f"{prefix}ff.layers.0")
        y = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
        x = x + linear(y, f"{prefix}ff.layers.2")
    return norm(x, "final_norm") @ w["out_head.weight"].T


def book_gemma3(w: Weights, stated: Mapping[str, Any], tokens: Tensor) -> Tensor:
    """Logits (length, vocabulary) of rasbt's Gemma3Model."""
    eps, hidden, length = 1e-6, w["tok_emb.weight"].shape[1], len(tokens)
    count = sum(name.endswith("input_layernorm.scale") for name in w)
    dim = len(w["blocks.0.att.q_norm.scale"])
    kinds = ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(count)]
    config = {"layer_types": kinds, "sliding_window": 512, "rope_base": 1e6, "rope_local_base": 1e4, **stated}
    scale = config.get("query_pre_attn_scalar", dim) ** -0.5
    ones = torch.ones(length, length, dtype=torch.bool)
    future, far = ones.triu(1), ones.triu(config["sliding_window"]).T

    def norm(x: Tensor, name: str) -> Tensor:
        return rms(x, 1.0 + w[f"{name}.scale"], eps)

    x = w["tok_emb.weight"][tokens] * hidden**0.5
    for n, kind in enumerate(config["layer_types"]):
        prefix, local = f"blocks.{n}.", kind == "sliding_attention"
        theta, masked = (config["rope_local_base"], future | far) if local else (config["rope_base"], future)
        y = norm(x, f"{prefix}input_layernorm")
        q, k, v = (
            (y @ w[f"{prefix}att.W_{name}.weight"].T).view(length, -1, dim) for name in ("query", "key", "value")
        )
        q, k = (turned_halves(norm(z, f"{prefix}att.{name}_norm"), theta) for z, name in ((q, "q"), (k, "k")))
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q * scale, k).masked_fill(masked, -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + norm(out @ w[f"{prefix}att.out_proj.weight"].T, f"{prefix}post_attention_layernorm")
        y = norm(x, f"{prefix}pre_feedforward_layernorm")
        gate, up, down = (w[f"{prefix}ff.fc{n}.weight"] for n in (1, 2, 3))
        gated = torch.nn.functional.gelu(y @ gate.T, approximate="tanh")
        x = x + norm((gated * (y @ up.T)) @ down.T, f"{prefix}post_feedforward_layernorm")
    return norm(x, "final_norm") @ w["out_head.weight"].T


FORWARD = {
    "rasbt-gemma3": book_gemma3,
    "rasbt-gpt": book_gpt,
    "nanogpt": nanogpt,
    "minimind": minimind,
    "rasbt": book,
    "qwen-moe-simplified": simplified_qwen_moe,
    "qwen3-from-scratch": from_scratch_qwen3,
    "moe-model": moe_model,
}
