"""Qwen3-MoE in Hugging Face layout (transformers: Qwen3MoeForCausalLM); some layers may be dense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import Windows, bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

BARE = bare("qwen3_moe", windows=Windows(switch=True, listed=True))


def matches(checkpoint: Checkpoint) -> bool:
    """Full attention with q_norm and k_norm in every layer, routed experts, and no shared expert."""
    seen = signature(checkpoint)
    return seen.qk_norm and seen.experts and not (seen.hybrid or seen.corrected)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, BARE)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        hf.expect_kind(config, prefix, "sliding_attention" if window else "full_attention")
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window, whole_rope=True)
        ffn: FeedForward
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=False)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, "qwen3-moe", layer)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint of the variant."""
    field_tiny.write(folder, field_tiny.QWEN3_MOE[variant], seed)


_SHARED = Expected(target="step35", rewrites=("empty shared expert",))
_CLAIM = Expected(
    target="qwen3moe",
    notes=(
        "layer 0 is linear_attention, but its tensors are full_attention",
        "layer 2 is linear_attention, but its tensors are full_attention",
        "states a shared expert, but the tensors have none",
    ),
)
VARIANTS = {
    **dict.fromkeys(field_tiny.QWEN3_MOE, Expected(target="qwen3moe")),
    "mixed": _SHARED,
    "window": _SHARED,
    "hybrid-config": _CLAIM,
    "hybrid-config-output-bias": replace(_CLAIM, rewrites=("bias on the attention output",)),
}

FAMILY = Family(
    name="qwen3-moe",
    title="Qwen3-MoE",
    model_types=("qwen3_moe",),
    matches=matches,
    build=build,
    preferred_targets=("qwen3moe",),
    variants=VARIANTS,
    tiny=tiny,
)
