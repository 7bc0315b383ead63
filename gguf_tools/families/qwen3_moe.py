"""Qwen3-MoE in Hugging Face layout (transformers: Qwen3MoeForCausalLM), dense layers among the others allowed."""

from __future__ import annotations

from gguf_tools.checkpoint import Checkpoint
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Config, Family, Inventory
from gguf_tools.families.signature import signature
from gguf_tools.spec import FeedForward, LayerSpec, Model, Norm


def matches(checkpoint: Checkpoint) -> bool:
    """Full attention with q_norm and k_norm in every layer, routed experts, and no shared expert."""
    seen = signature(checkpoint)
    return seen.qk_norm and seen.experts and not (seen.linear or seen.gated or seen.shared)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), Config(checkpoint)

    def layer(prefix: str, hidden: int, norm: Norm) -> tuple[LayerSpec, hf.Part]:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn: FeedForward
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=False)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    return assemble(checkpoint, inventory, config, "qwen3-moe", layer)


FAMILY = Family("qwen3-moe", "Qwen3-MoE", matches, build)
