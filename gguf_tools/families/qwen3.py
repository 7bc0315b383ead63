"""Qwen3, dense, in Hugging Face layout (transformers: Qwen3ForCausalLM)."""

from __future__ import annotations

from gguf_tools.checkpoint import Checkpoint
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Config, Family, Inventory
from gguf_tools.families.signature import signature
from gguf_tools.spec import LayerSpec, Model, Norm


def matches(checkpoint: Checkpoint) -> bool:
    """Full attention with q_norm and k_norm in every layer, and no experts."""
    seen = signature(checkpoint)
    return seen.qk_norm and not seen.experts and not seen.linear and not seen.gated


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)

    def layer(prefix: str, hidden: int, norm: Norm) -> tuple[LayerSpec, hf.Part]:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    return assemble(checkpoint, inventory, config, "qwen3", layer)


FAMILY = Family("qwen3", "Qwen3, dense", matches, build)
