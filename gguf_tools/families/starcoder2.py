"""StarCoder2 in Hugging Face layout (transformers: Starcoder2ForCausalLM)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint


def matches(checkpoint: Checkpoint) -> bool:
    """Layer norms with biases, and projections `c_fc` and `c_proj` of the feed-forward."""
    names = checkpoint.tensors
    return "model.layers.0.mlp.c_fc.weight" in names and "model.layers.0.input_layernorm.bias" in names


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("starcoder2"))
    activation = hf.activation(config)
    whole = Norm(config.number("norm_epsilon"), centred=True, bias=True)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None, window)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, activation, "c_fc", "c_proj")
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, norm=whole, swiglu=False)


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"tie_word_embeddings": True}, Expected(target="starcoder2")),
    "no-biases": ({"use_bias": False}, Expected(target="starcoder2")),
    "window": ({"sliding_window": 8}, Expected(refused="a sliding window of 8 tokens")),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {"model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "use_bias": True}
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    biased = config["use_bias"]
    made = tiny_attention.Variant(config=config, bias="qkvo" if biased else "", mlp_bias=biased, norm_bias=True)
    shapes = {
        name.replace("up_proj", "c_fc").replace("down_proj", "c_proj"): shape
        for name, shape in tiny_attention.shapes(made).items()
        if "gate_proj" not in name
    }
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="starcoder2",
    title="StarCoder2",
    model_types=("starcoder2",),
    matches=matches,
    build=build,
    preferred_targets=("starcoder2",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
