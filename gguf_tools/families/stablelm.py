"""StableLM in Hugging Face layout (transformers: StableLmForCausalLM): layer norms with biases around Llama's projections."""

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


def matches(checkpoint: Checkpoint) -> bool:
    """Layer norms with biases, and feed-forwards with a gate."""
    names = checkpoint.tensors
    return "model.layers.0.mlp.gate_proj.weight" in names and "model.layers.0.input_layernorm.bias" in names


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for norms of q and k, which are layer norms of each head."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("stablelm"))
    if config.flag("qk_layernorm", False):
        raise UnsupportedError(f"{config.path}: qk_layernorm is true, which is not supported")
    whole = Norm(config.number("layer_norm_eps"), centred=True, bias=True)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        parallel = f"{prefix}post_attention_layernorm.weight" not in inventory
        config.expect("use_parallel_residual", parallel)
        return Layer(LayerSpec(mixer, ffn, norm, None if parallel else norm, parallel=parallel), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, norm=whole)


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"partial_rotary_factor": 0.25, "use_qkv_bias": True}, Expected(target="stablelm")),
    "parallel": ({"partial_rotary_factor": 0.5, "use_parallel_residual": True}, Expected(target="stablelm")),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {"model_type": "stablelm", "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1}
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    made = tiny_attention.Variant(config=config, bias="qkv" if config.get("use_qkv_bias") else "", norm_bias=True)
    parallel = config.get("use_parallel_residual", False)
    shapes = {
        name: shape
        for name, shape in tiny_attention.shapes(made).items()
        if not (parallel and "post_attention_layernorm" in name)
    }
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="stablelm",
    title="StableLM",
    model_types=("stablelm",),
    matches=matches,
    build=build,
    preferred_targets=("stablelm",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
