"""GLM-4 in Hugging Face layout (transformers: Glm4ForCausalLM).

Norms before and after mixer and feed-forward, gate and up projection in one matrix, rope on half of each head in interleaved
pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import GatedMLP, Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import take

NORMS = {
    "mixer_norm": "input_layernorm",
    "mixer_post_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_post_norm": "post_mlp_layernorm",
}
GATE_UP = "mlp.gate_up_proj.weight"


def matches(checkpoint: Checkpoint) -> bool:
    """Four norms a layer by GLM's names, and gate and up in one matrix."""
    names = checkpoint.tensors
    layer = "model.layers.0."
    return all(f"{layer}{name}" in names for name in (GATE_UP, *(f"{norm}.weight" for norm in NORMS.values())))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("glm4"))

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """The parts of one layer, between its four norms."""
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        width = inventory.shape(f"{prefix}{GATE_UP}")[0] // 2
        both = inventory.take(f"{prefix}{GATE_UP}", 2 * width, hidden)
        part |= {"ffn.gate": take(both, range(width)), "ffn.up": take(both, range(width, 2 * width))}
        part["ffn.down"] = inventory.take(f"{prefix}mlp.down_proj.weight", hidden, width)
        config.expect("intermediate_size", width)
        rope = replace(mixer.rope, pairs="interleaved") if mixer.rope else None
        spec = LayerSpec(
            replace(mixer, rope=rope), GatedMLP(width), norm, norm, mixer_post_norm=norm, ffn_post_norm=norm
        )
        return Layer(spec, part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, names=NORMS)


VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"partial_rotary_factor": 0.5, "attention_bias": True}, Expected(target="glm4")),
    "no-biases": (
        {"partial_rotary_factor": 0.25, "attention_bias": False, "tie_word_embeddings": True},
        Expected(target="glm4"),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {"model_type": "glm4", "head_dim": 32, "pad_token_id": 0, "eos_token_id": 1}
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    made = tiny_attention.Variant(config=config, bias="qkv" if config["attention_bias"] else "")
    shapes = tiny_attention.shapes(made)
    for n in range(tiny_attention.LAYERS):
        for name in ("post_self_attn", "post_mlp"):
            shapes[f"model.layers.{n}.{name}_layernorm.weight"] = (tiny_attention.HIDDEN,)
    tensors = random_tensors(shapes, seed, gain=tiny_attention.GAIN)
    for n in range(tiny_attention.LAYERS):
        place = f"model.layers.{n}.mlp."
        parts = [tensors.pop(f"{place}{name}_proj.weight") for name in ("gate", "up")]
        tensors[f"{place}gate_up_proj.weight"] = np.concatenate(parts)
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="glm4",
    title="GLM-4",
    model_types=("glm4",),
    matches=matches,
    build=build,
    preferred_targets=("glm4",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
