"""Nemotron 4 and Minitron in Hugging Face layout (transformers: NemotronForCausalLM).

Layer norms whose weights are stored minus 1, squared ReLUs without a gate, rope on half of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """Llama's names for norms, which have biases, and feed-forwards of an up and a down projection alone."""
    names = checkpoint.tensors
    layer = "model.layers.0."
    own = ("input_layernorm.bias", "post_attention_layernorm.bias", "mlp.up_proj.weight", "self_attn.q_proj.weight")
    return all(f"{layer}{name}" in names for name in own) and f"{layer}mlp.gate_proj.weight" not in names


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("nemotron"))
    whole = Norm(config.number("norm_eps"), offset=1.0, centred=True, bias=True)
    activation = hf.activation(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, activation)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, norm=whole, swiglu=False)


_EXACT = Expected(target="nemotron")
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"partial_rotary_factor": 0.5}, _EXACT),
    "biases": ({"partial_rotary_factor": 0.25, "attention_bias": True, "mlp_bias": True}, _EXACT),
    "tied": (
        {"partial_rotary_factor": 1.0, "tie_word_embeddings": True},
        Expected(target="nemotron", rewrites=("output written out",)),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {"model_type": "nemotron", "norm_eps": 1e-5, "hidden_act": "relu2"}
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    biased = bool(config.get("attention_bias"))
    made = tiny_attention.Variant(config=config, bias="qkvo" if biased else "", mlp_bias=biased, norm_bias=True)
    shapes = {name: shape for name, shape in tiny_attention.shapes(made).items() if "gate_proj" not in name}
    write_checkpoint(folder, config, random_tensors(shapes, seed, norm_centre=0.2, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="nemotron",
    title="Nemotron 4, Minitron",
    model_types=("nemotron",),
    matches=matches,
    build=build,
    preferred_targets=("nemotron",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
