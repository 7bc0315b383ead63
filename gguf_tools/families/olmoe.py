"""OLMoE in Hugging Face layout (transformers: OlmoeForCausalLM): Qwen3-MoE's names, but one norm of q and of k over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
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
from gguf_tools.sources.signature import signature


def matches(checkpoint: Checkpoint) -> bool:
    """Experts, and norms of q and k as long as all heads together."""
    names = checkpoint.tensors
    place = "model.layers.0.self_attn."
    norm, output = names.get(f"{place}q_norm.weight"), names.get(f"{place}o_proj.weight")
    return signature(checkpoint).experts and norm is not None and output is not None and norm.shape == output.shape[1:]


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for clip_qkv, which clips after the norms."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("olmoe"))
    if config.values.get("clip_qkv") is not None:
        raise UnsupportedError(f"{config.path}: clip_qkv is {config.values['clip_qkv']!r}, which is not supported")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, whole_norm=True)
        ffn, ffn_part = hf.moe(inventory, config, f"{prefix}mlp.", hidden, normalised=False)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, Expected(target="olmoe")),
    "clipped": ({"clip_qkv": 2.0}, Expected(refused="clip_qkv is 2.0", oracle=False)),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    hidden, heads = tiny_attention.HIDDEN, tiny_attention.HEADS
    stated = {"model_type": "olmoe", "num_experts": tiny_attention.EXPERTS, "num_experts_per_tok": 2}
    stated |= {"norm_topk_prob": False, "num_key_value_heads": heads, "intermediate_size": tiny_attention.EXPERT_WIDTH}
    config = {**tiny_attention.BASE, **stated, "pad_token_id": 0, "eos_token_id": 1, **VARIANTS[variant][0]}
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config, experts="separate"))
    for n in range(tiny_attention.LAYERS):
        place = f"model.layers.{n}.self_attn."
        shapes |= {f"{place}{name}_norm.weight": (hidden,) for name in "qk"}
        shapes |= {f"{place}{name}_proj.weight": (hidden, hidden) for name in "kv"}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="olmoe",
    title="OLMoE",
    model_types=("olmoe",),
    matches=matches,
    build=build,
    preferred_targets=("olmoe",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
    by_type=True,
)
