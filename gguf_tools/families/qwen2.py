"""Qwen2 and Qwen2.5, dense, in Hugging Face layout (transformers: Qwen2ForCausalLM)."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.families import hf, llama
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
    """Plain attention with biases on q, k and v, and dense MLPs."""
    seen = signature(checkpoint)
    return llama.dense(seen) and llama.qwen2_biases(seen)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("qwen2"))
    llama.refuse_other_arithmetic(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, "qwen2", layer)


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint of the variant."""
    field_tiny.write(folder, field_tiny.QWEN2[variant], seed)


_PAIRS = ("rope in interleaved pairs",)
VARIANTS = {
    **dict.fromkeys(field_tiny.QWEN2, Expected(target="qwen2")),
    "wide-heads": Expected(target="llama", rewrites=_PAIRS),
    "window": Expected(target="granite_swa", rewrites=_PAIRS),
}

FAMILY = Family(
    name="qwen2",
    title="Qwen2, dense",
    model_types=("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "seed_oss"),
    matches=matches,
    build=build,
    preferred_targets=("qwen2", *llama.WINDOWED),
    variants=VARIANTS,
    tiny=tiny,
)
