"""Qwen2-MoE and Qwen1.5-MoE in Hugging Face layout (transformers: Qwen2MoeForCausalLM).

Routed experts and a gated shared expert; some layers may be dense (`decoder_sparse_step`, `mlp_only_layers`).
"""

from __future__ import annotations

from pathlib import Path

from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature


def matches(checkpoint: Checkpoint) -> bool:
    """Plain attention, routed experts with a router `mlp.gate`, and a shared expert."""
    seen = signature(checkpoint)
    return llama.plain_attention(seen) and seen.experts and seen.shared and seen.router


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("qwen2_moe"))
    llama.refuse_other_arithmetic(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        ffn: FeedForward
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window)
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=False)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
            config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, "qwen2-moe", layer)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint of the variant."""
    field_tiny.write(folder, field_tiny.QWEN2_MOE[variant], seed)


VARIANTS = {
    **dict.fromkeys(field_tiny.QWEN2_MOE, Expected(target="qwen2moe")),
    "tied": Expected(target="qwen2moe", rewrites=("output written out",)),
    "renormalised": Expected(refused="qwen2moe does not support router weights renormalised (norm_topk_prob true)"),
    "mixed": Expected(refused="qwen2moe does not support layers without experts"),
}

FAMILY = Family(
    name="qwen2-moe",
    title="Qwen2-MoE",
    model_types=("qwen2_moe",),
    matches=matches,
    build=build,
    preferred_targets=("qwen2moe",),
    variants=VARIANTS,
    tiny=tiny,
)
