"""Small random checkpoints of Qwen3-Next and Qwen3.5, in the published layouts and as MLX saves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.families.tiny.writing import Arrays, random_tensors, write_checkpoint, write_tiny_tokenizer

VOCAB, HIDDEN, KERNEL = 288, 64, 4
MLX_NORMS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "model.norm.weight",
    "q_norm.weight",
    "k_norm.weight",
)
"""Suffixes of the norm weights to which MLX adds 1."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The architecture of a small hybrid model.

    Each letter in `layers` is a layer: D for linear and A for full attention, with experts; d and a with a dense MLP.
    """

    layers: str = "DADA"
    heads: int = 8
    head_dim: int = 16
    kv_heads: int = 1
    gated: bool = True
    shared: bool = True
    shared_gated: bool = True
    bias: str = "qkv"
    experts: int = 2
    top_k: int = 1
    fused: bool = False
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 16
    value_dim: int = 16
    tied: bool = True
    separate: bool = False
    yarn: bool = True
    tower: bool = False
    mtp: bool = False
    mlx: bool = False


NEXT_VARIANTS: Mapping[str, Shape] = {
    "gated": Shape(),
    "ungated": Shape(gated=False, shared_gated=False),
    "ungated-attention": Shape(gated=False),
    "ungated-shared": Shape(shared_gated=False),
    "no-shared": Shape(shared=False),
    "output-bias": Shape(bias="qkvo"),
    "ungated-output-bias": Shape(gated=False, shared_gated=False, bias="qkvo"),
    "wide-heads-output-bias": Shape(heads=2, head_dim=64, bias="qkvo"),
    "irregular": Shape(
        layers="DDADAA", kv_heads=2, experts=4, top_k=2, key_heads=2, value_heads=6, bias="", tied=False, yarn=False
    ),
    "fused": Shape(fused=True, experts=4, top_k=2, mtp=True),
    "linear-only": Shape(layers="DD"),
    "full-only": Shape(layers="AA"),
    "dense-layers": Shape(layers="dADa", experts=4, top_k=2),
    "wide-keys": Shape(key_dim=32),
    "mlx": Shape(mlx=True, experts=4, top_k=2),
}
_QWEN35 = Shape(separate=True, bias="", yarn=False, tied=False, kv_heads=2)
QWEN35_VARIANTS: Mapping[str, Shape] = {
    "dense": replace(_QWEN35, layers="dada"),
    "moe": replace(_QWEN35, experts=4, top_k=2, fused=True),
    "moe-separate-experts": replace(_QWEN35, experts=4, top_k=2, layers="DDA"),
    "ungated": replace(_QWEN35, layers="ddaa", gated=False, tied=True),
    "output-bias": replace(_QWEN35, layers="da", bias="qkvo"),
    "vision": replace(_QWEN35, layers="dda", tower=True, mtp=True),
    "mlx": replace(_QWEN35, layers="dada", mlx=True),
    "moe-mlx": replace(_QWEN35, experts=4, top_k=2, mlx=True),
}


def write_next(folder: Path, variant: str, seed: int) -> None:
    """Write a random Qwen3-Next checkpoint with a tokenizer."""
    write(folder, NEXT_VARIANTS[variant], seed)


def write_qwen35(folder: Path, variant: str, seed: int) -> None:
    """Write a random Qwen3.5 checkpoint with a tokenizer; the variant `vision` also has a vision tower and an MTP block."""
    write(folder, QWEN35_VARIANTS[variant], seed)


def write(folder: Path, shape: Shape, seed: int) -> None:
    """Write a random checkpoint of this architecture with a tokenizer."""
    gain = {"A_log": 1.5 * shape.value_heads**0.5, "dt_bias": 2.0, "mlp.gate.weight": 2.0, "in_proj_b": 1.5}
    tensors = random_tensors(shapes(shape), seed, norm_centre=0.3, gain=gain)
    config, metadata = config_of(shape), {"format": "pt"}
    if shape.tower:
        config = {
            "model_type": "qwen3_5",
            "tie_word_embeddings": shape.tied,
            "text_config": config,
            "vision_config": {"depth": 1},
        }
        tensors = {name.replace("model.", "model.language_model.", 1): values for name, values in tensors.items()}
        tensors["model.visual.blocks.0.mlp.linear_fc1.weight"] = np.ones((8, 8), np.float32)
    if shape.mlx:
        tensors, metadata = as_mlx(tensors, shape), {"format": "mlx"}
    write_checkpoint(folder, config, tensors, metadata=metadata)
    write_tiny_tokenizer(folder, VOCAB)


def shapes(shape: Shape) -> Shapes:
    """Names and shapes of the text model's tensors in the published layout."""
    out: Shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for n, letter in enumerate(shape.layers):
        mixer = _linear(shape) if letter in "Dd" else _attention(shape)
        ffn = _experts(shape) if letter.isupper() else _mlp("mlp.", 96)
        norms: Shapes = {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
        out |= {f"model.layers.{n}.{name}": size for name, size in (mixer | ffn | norms).items()}
    if not shape.tied:
        out["lm_head.weight"] = (VOCAB, HIDDEN)
    if shape.mtp:
        out["mtp.fc.weight"] = (HIDDEN, 2 * HIDDEN)
    return out


def _attention(shape: Shape) -> Shapes:
    wide, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    rows = {"q": 2 * wide if shape.gated else wide, "k": kv, "v": kv, "o": HIDDEN}
    out: Shapes = {f"self_attn.{name}_proj.weight": (count, HIDDEN) for name, count in rows.items()}
    out["self_attn.o_proj.weight"] = (HIDDEN, wide)
    out |= {f"self_attn.{name}_proj.bias": (rows[name],) for name in shape.bias}
    return out | {"self_attn.q_norm.weight": (shape.head_dim,), "self_attn.k_norm.weight": (shape.head_dim,)}


def _linear(shape: Shape) -> Shapes:
    """The shapes of a Gated DeltaNet's tensors, with fused or separate projections."""
    key, value, heads = shape.key_heads * shape.key_dim, shape.value_heads * shape.value_dim, shape.value_heads
    if shape.separate:
        rows = {"in_proj_qkv": 2 * key + value, "in_proj_z": value, "in_proj_b": heads, "in_proj_a": heads}
    else:
        rows = {"in_proj_qkvz": 2 * (key + value), "in_proj_ba": 2 * heads}
    return {f"linear_attn.{name}.weight": (count, HIDDEN) for name, count in rows.items()} | {
        "linear_attn.conv1d.weight": (2 * key + value, 1, KERNEL),
        "linear_attn.A_log": (heads,),
        "linear_attn.dt_bias": (heads,),
        "linear_attn.norm.weight": (shape.value_dim,),
        "linear_attn.out_proj.weight": (HIDDEN, value),
    }


def _mlp(prefix: str, width: int) -> Shapes:
    rows = {"gate": (width, HIDDEN), "up": (width, HIDDEN), "down": (HIDDEN, width)}
    return {f"{prefix}{name}_proj.weight": size for name, size in rows.items()}


def _experts(shape: Shape) -> Shapes:
    """The shapes of a layer's router, experts and shared expert."""
    width = 64
    out: Shapes = {"mlp.gate.weight": (shape.experts, HIDDEN)}
    if shape.fused:
        out["mlp.experts.gate_up_proj"] = (shape.experts, 2 * width, HIDDEN)
        out["mlp.experts.down_proj"] = (shape.experts, HIDDEN, width)
    else:
        for expert in range(shape.experts):
            out |= _mlp(f"mlp.experts.{expert}.", width)
    if shape.shared:
        out |= _mlp("mlp.shared_expert.", 32)
        if shape.shared_gated:
            out["mlp.shared_expert_gate.weight"] = (1, HIDDEN)
    return out


def config_of(shape: Shape) -> dict[str, Any]:
    """config.json as transformers writes it."""
    moe = shape.layers != shape.layers.lower()
    kind = ("qwen3_5_moe_text" if moe else "qwen3_5_text") if shape.separate else "qwen3_next"
    rope: dict[str, Any] = {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "rope_type": "default"}
    if shape.yarn:
        rope |= {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 1.0,
        }
    if shape.separate:
        rope |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = {
        "model_type": kind,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": len(shape.layers),
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": rope,
        "attention_bias": bool(shape.bias),
        "layer_types": ["linear_attention" if letter in "Dd" else "full_attention" for letter in shape.layers],
        "linear_conv_kernel_dim": KERNEL,
        "linear_num_key_heads": shape.key_heads,
        "linear_num_value_heads": shape.value_heads,
        "linear_key_head_dim": shape.key_dim,
        "linear_value_head_dim": shape.value_dim,
    }
    experts = {
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [n for n, letter in enumerate(shape.layers) if letter.islower()],
    }
    return config | (experts if moe else {})


def as_mlx(tensors: Arrays, shape: Shape) -> Arrays:
    """The same weights as mlx-lm saves them: convolution axes swapped, 1 added to norm weights, experts stacked."""
    out: Arrays = {}
    for name, values in tensors.items():
        if name.endswith("conv1d.weight"):
            out[name] = np.ascontiguousarray(values.swapaxes(1, 2))
        elif name.endswith(MLX_NORMS):
            out[name] = values + 1
        elif ".mlp.experts." not in name:
            out[name] = values
    for n in range(len(shape.layers)):
        experts = f"model.layers.{n}.mlp.experts"
        for projection in ("gate", "up", "down"):
            parts = [tensors.get(f"{experts}.{e}.{projection}_proj.weight") for e in range(shape.experts)]
            stacked = [part for part in parts if part is not None]
            if stacked:
                out[f"model.layers.{n}.mlp.switch_mlp.{projection}_proj.weight"] = np.stack(stacked)
    prefix = "language_model." if shape.separate else ""
    return {prefix + name: values for name, values in out.items()}
