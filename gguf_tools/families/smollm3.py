"""SmolLM3 in Hugging Face layout (transformers: SmolLM3ForCausalLM): Llama's tensors, and layers without rope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint


def matches(checkpoint: Checkpoint) -> bool:
    """The tensors of Llama."""
    return llama.matches(checkpoint)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for its sliding windows, which no published model has."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("smollm3"))
    if config.flag("use_sliding_window", False):
        raise UnsupportedError(f"{config.path}: use_sliding_window is true, which is not supported for SmolLM3")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        if not has_rope(config, layer_number(prefix)):
            mixer = replace(mixer, rope=None)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


def has_rope(config: ClassConfig, layer: int) -> bool:
    """Whether the layer has rope: by no_rope_layers (1 where it has), else all but every no_rope_layer_interval-th."""
    config.fill("no_rope_layers")
    listed = config.values.get("no_rope_layers")
    if listed is None:
        return (layer + 1) % config.integer("no_rope_layer_interval") != 0
    if not isinstance(listed, list) or layer >= len(listed) or listed[layer] not in (0, 1):
        raise config.wrong("no_rope_layers", listed, "a list of 0 and 1 with an entry for each layer")
    return bool(listed[layer])


LAYERS = 5
_NATIVE = Expected(target="smollm3", rewrites=("rope in interleaved pairs",))
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"tie_word_embeddings": True}, _NATIVE),
    "biases": (
        {"no_rope_layers": [1, 1, 1, 0, 1], "attention_bias": True},
        replace(_NATIVE, rewrites=(*_NATIVE.rewrites, "bias on the attention output")),
    ),
    "rope-everywhere": ({"no_rope_layers": [1] * 5}, replace(_NATIVE, target="llama")),
    "other-layers": ({"no_rope_layers": [1, 0, 1, 0, 1]}, Expected(refused="rope in layers 0, 2, 4", oracle=False)),
    "sliding": (
        {"use_sliding_window": True, "sliding_window": 8},
        Expected(refused="use_sliding_window", oracle=False),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {"model_type": "smollm3", "num_hidden_layers": LAYERS, "pad_token_id": 0, **VARIANTS[variant][0]}
    made = tiny_attention.Variant(config=config, bias="qkvo" if config.get("attention_bias") else "", layers=LAYERS)
    tiny_attention.write(folder, made, seed)


FAMILY = Family(
    name="smollm3",
    title="SmolLM3",
    model_types=("smollm3",),
    matches=matches,
    build=build,
    preferred_targets=("smollm3", "llama"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
    by_type=True,
)
