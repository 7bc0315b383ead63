"""Arcee in Hugging Face layout (transformers: ArceeForCausalLM): Llama with feed-forwards of squared ReLUs without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature


def matches(checkpoint: Checkpoint) -> bool:
    """Plain attention under RMS norms, and feed-forwards of an up and a down projection alone."""
    names = checkpoint.tensors
    layer = "model.layers.0."
    marks = (f"{layer}mlp.up_proj.weight", f"{layer}mlp.down_proj.weight", f"{layer}input_layernorm.weight")
    others = (f"{layer}mlp.gate_proj.weight", f"{layer}input_layernorm.bias")
    plain = llama.plain_attention(signature(checkpoint))
    return plain and all(name in names for name in marks) and not any(name in names for name in others)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("arcee"))
    llama.refuse_other_arithmetic(config)
    activation = hf.activation(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, activation)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, swiglu=False)


_AS_LLAMA = Expected(target="llama", rewrites=("squared ReLU as SwiGLU", "rope in interleaved pairs"))
_UNGATED = Expected(target="llama", rewrites=("feed-forward without a gate as SwiGLU", "rope in interleaved pairs"))
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, _AS_LLAMA),
    "biases": ({"attention_bias": True, "mlp_bias": True}, _AS_LLAMA),
    "relu": ({"hidden_act": "relu"}, _UNGATED),
    "silu": ({"hidden_act": "silu", "mlp_bias": True}, _UNGATED),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint: Llama's tensors without the gates."""
    config = {**tiny_attention.BASE, "model_type": "arcee", "hidden_act": "relu2", **VARIANTS[variant][0]}
    bias, mlp_bias = "qkvo" if config.get("attention_bias") else "", bool(config.get("mlp_bias"))
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config, bias=bias, mlp_bias=mlp_bias))
    kept = {name: shape for name, shape in shapes.items() if "gate_proj" not in name}
    write_checkpoint(folder, config, random_tensors(kept, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="arcee",
    title="Arcee (AFM)",
    model_types=("arcee",),
    matches=matches,
    build=build,
    preferred_targets=("llama",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
