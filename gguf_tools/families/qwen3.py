"""Qwen3, dense, in Hugging Face layout (transformers: Qwen3ForCausalLM)."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as field_tiny
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature


def matches(checkpoint: Checkpoint) -> bool:
    """Full attention with q_norm and k_norm in every layer, and no experts."""
    seen = signature(checkpoint)
    return seen.qk_norm and seen.two_norms and not seen.experts and not seen.hybrid


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("qwen3"))

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        hf.expect_kind(config, prefix, "sliding_attention" if window else "full_attention")
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window, whole_rope=True)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, "qwen3", layer)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint of the variant."""
    field_tiny.write(folder, field_tiny.QWEN3[variant], seed)


VARIANTS = {
    **dict.fromkeys(field_tiny.QWEN3, Expected(target="qwen3")),
    "window": Expected(target="step35"),
    "output-bias": Expected(target="qwen3", rewrites=("bias on the attention output",)),
}

FAMILY = Family(
    name="qwen3",
    title="Qwen3, dense",
    model_types=("qwen3", "qwen3_vl", "qwen3_vl_text"),
    matches=matches,
    build=build,
    preferred_targets=("qwen3",),
    variants=VARIANTS,
    tiny=tiny,
)
