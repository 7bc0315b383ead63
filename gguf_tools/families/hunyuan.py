"""Hunyuan, dense, in Hugging Face layout (transformers: HunYuanDenseV1ForCausalLM): Llama with q/k norms after rope.

Published configs call their scaling dynamic; with an `alpha` it stretches rope's base alone, whatever the length.
"""

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
from gguf_tools.families.hf_rope import rope, scaling_kind, stated_rope
from gguf_tools.families.reading import Inventory, is_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

NORMS = {"q": "query_layernorm", "k": "key_layernorm"}


def matches(checkpoint: Checkpoint) -> bool:
    """Llama's attention and feed-forwards, and Hunyuan's names for q/k norms."""
    seen = signature(checkpoint)
    return seen.late_norm and llama.dense(replace(seen, late_norm=False))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("hunyuan_v1_dense"))
    llama.refuse_other_arithmetic(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(
            inventory, config, f"{prefix}self_attn.", hidden, None, rope_of=lambda dim: _rope(config, dim)
        )
        for name, stored in NORMS.items():
            part[f"attn.{name}_norm"] = inventory.take(f"{prefix}self_attn.{stored}.weight", mixer.head_dim)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        mixer = replace(mixer, qk_norm=norm, norm_after_rope=True)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


def _rope(config: ClassConfig, dim: int) -> Rope:
    """The rope of heads of `dim` dimensions: with an alpha, its base is theta · alpha^(dim / (dim - 2))."""
    stated = stated_rope(config)
    alpha = stated.get("alpha")
    if scaling_kind(stated) != "dynamic" or not alpha:
        return rope(config, dim)
    if not is_number(alpha) or alpha <= 0 or dim < 4:
        raise config.wrong("rope_scaling.alpha", alpha, "a number above 0, and heads of more than 2 dimensions")
    plain = rope(config, dim, aliases={"dynamic": "default"})
    return replace(plain, theta=plain.theta * alpha ** (dim / (dim - 2)))


_ALPHA = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"rope_scaling": _ALPHA, "tie_word_embeddings": True}, Expected(target="hunyuan-dense")),
    "untied": ({}, Expected(target="hunyuan-dense")),
    "biases": (
        {"attention_bias": True},
        Expected(refused="hunyuan-dense does not support a bias on the attention output"),
    ),
    "dynamic": ({"rope_scaling": {**_ALPHA, "alpha": None}}, Expected(refused="rope scaling 'dynamic'", oracle=False)),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint: Llama's tensors with norms of q and k."""
    config = {**tiny_attention.BASE, "model_type": "hunyuan_v1_dense", "head_dim": 32, **VARIANTS[variant][0]}
    shapes = tiny_attention.shapes(
        tiny_attention.Variant(config=config, bias="qkvo" if config.get("attention_bias") else "")
    )
    for n in range(tiny_attention.LAYERS):
        shapes |= {f"model.layers.{n}.self_attn.{name}.weight": (config["head_dim"],) for name in NORMS.values()}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="hunyuan",
    title="Hunyuan, dense",
    model_types=("hunyuan_v1_dense",),
    matches=matches,
    build=build,
    preferred_targets=("hunyuan-dense",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
