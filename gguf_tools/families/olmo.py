"""OLMo 1 in Hugging Face layout (transformers: OlmoForCausalLM): Llama with layer norms that have neither weights nor biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint

NORM = Norm(1e-5, centred=True, weighted=False)
"""The class's norm, whose epsilon no config can change."""


def matches(checkpoint: Checkpoint) -> bool:
    """Feed-forwards with a gate, and no norm anywhere."""
    names = checkpoint.tensors
    gated = "model.layers.0.mlp.gate_proj.weight" in names and "model.layers.0.self_attn.q_proj.weight" in names
    return gated and not any("norm" in name for name in names)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("olmo"))
    clip = None if config.values.get("clip_qkv") is None else config.number("clip_qkv")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(replace(mixer, clip=clip or None), ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, norm=NORM)


_NATIVE = Expected(target="olmo", rewrites=("rope in interleaved pairs",))
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, _NATIVE),
    "clipped": ({"clip_qkv": 1.5, "tie_word_embeddings": True}, _NATIVE),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint: Llama's tensors without the norms."""
    config = {**tiny_attention.BASE, "model_type": "olmo", "pad_token_id": 0, "eos_token_id": 1, **VARIANTS[variant][0]}
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config))
    kept = {name: shape for name, shape in shapes.items() if "norm" not in name}
    write_checkpoint(folder, config, random_tensors(kept, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="olmo",
    title="OLMo 1",
    model_types=("olmo",),
    matches=matches,
    build=build,
    preferred_targets=("olmo", "llama"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
