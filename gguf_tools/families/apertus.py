"""Apertus in Hugging Face layout (transformers: ApertusForCausalLM): q/k norms, and xIELU without a gate.

The four numbers of a layer's xIELU are tensors: two learned ones, and beta and eps.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from gguf_tools.model.feed_forward import XIELU
from gguf_tools.model.spec import Layer, LayerSpec, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import Reshaped

NORMS = {"mixer_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"}


def matches(checkpoint: Checkpoint) -> bool:
    """Apertus' names for norms, and feed-forwards of an up and a down projection."""
    layer = "model.layers.0."
    own = (*(f"{norm}.weight" for norm in NORMS.values()), "mlp.up_proj.weight", "self_attn.q_norm.weight")
    return all(f"{layer}{name}" in checkpoint.tensors for name in own)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("apertus"))
    config.fill("hidden_act")
    activation = config.values.get("hidden_act")
    if activation != "xielu":
        raise config.wrong("hidden_act", activation, "xielu")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, whole_rope=True)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, "xielu")
        for name in XIELU:
            # The learned numbers have one axis, the others none.
            learned = (1,) if name.startswith("alpha") else ()
            ffn_part[f"ffn.{name}"] = Reshaped(inventory.take(f"{prefix}mlp.act_fn.{name}", *learned), (1,))
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, names=NORMS, swiglu=False)


_LLAMA3 = {**tiny_attention.LLAMA3, "rope_theta": 12000000.0}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"rope_parameters": _LLAMA3}, Expected(target="apertus")),
    "biases": (
        {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        Expected(target="apertus"),
    ),
    "tied": (
        {"tie_word_embeddings": True, "rope_parameters": _LLAMA3},
        Expected(target="apertus", rewrites=("output written out",)),
    ),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {
        **tiny_attention.BASE,
        "model_type": "apertus",
        "hidden_act": "xielu",
        "head_dim": 32,
        **VARIANTS[variant][0],
    }
    made = tiny_attention.Variant(config=config, qk_norm=True, bias="qkvo" if config.get("attention_bias") else "")
    shapes = {}
    for name, shape in tiny_attention.shapes(made).items():
        if "mlp.gate_proj" not in name:
            renamed = name.replace("input_layernorm", NORMS["mixer_norm"])
            shapes[renamed.replace("post_attention_layernorm", NORMS["ffn_norm"])] = shape
    tensors = random_tensors(shapes, seed, gain=tiny_attention.GAIN)
    rng = np.random.default_rng([seed, len(tensors)])
    for n in range(tiny_attention.LAYERS):
        learned = rng.normal(0.5, 0.5, (2, 1)).astype(np.float32)
        numbers = (*learned, np.float32(0.5 + n / 8), np.float32(-1e-6))
        tensors |= {
            f"model.layers.{n}.mlp.act_fn.{name}": np.asarray(value) for name, value in zip(XIELU, numbers, strict=True)
        }
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="apertus",
    title="Apertus",
    model_types=("apertus",),
    matches=matches,
    build=build,
    preferred_targets=("apertus",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
