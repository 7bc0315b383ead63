"""Ernie 4.5, dense, in Hugging Face layout (transformers: Ernie4_5ForCausalLM): Llama with rope in interleaved pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("ernie4_5"))
    llama.refuse_other_arithmetic(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        if mixer.rope:
            mixer = replace(mixer, rope=replace(mixer.rope, pairs="interleaved"))
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"head_dim": 32, "tie_word_embeddings": True}, Expected(target="llama")),
    "biases": ({"head_dim": 16, "use_bias": True}, Expected(target="llama")),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {"model_type": "ernie4_5", "rope_theta": 500000.0, **VARIANTS[variant][0]}
    biased = bool(config.get("use_bias"))
    made = tiny_attention.Variant(config=config, bias="qkvo" if biased else "", mlp_bias=biased)
    tiny_attention.write(folder, made, seed)


FAMILY = Family(
    name="ernie4.5",
    title="Ernie 4.5, dense",
    model_types=("ernie4_5",),
    matches=llama.matches,
    build=build,
    preferred_targets=("llama",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
    by_type=True,
)
