"""Phi-1, Phi-1.5 and Phi-2 in Hugging Face layout (transformers: PhiForCausalLM).

Mixer and feed-forward, of GELUs without a gate, read the same normed x in parallel. Everything has biases, the logits too. Rope
turns a part of each head.
"""

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

OUTPUT = "dense"
"""The name of the attention's output projection."""


def matches(checkpoint: Checkpoint) -> bool:
    """Phi's names for the output projection and the feed-forward."""
    own = (f"self_attn.{OUTPUT}.weight", "self_attn.q_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    return all(f"model.layers.0.{name}" in checkpoint.tensors for name in own)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model; UnsupportedError for layer norms of q and k."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("phi"))
    if config.flag("qk_layernorm", False):
        raise UnsupportedError(
            f"{config.path}: qk_layernorm is true: layer norms of queries and keys are not supported"
        )
    whole = Norm(config.number("layer_norm_eps"), centred=True, bias=True)
    activation = hf.activation(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None, output=OUTPUT)
        ffn, ffn_part = hf.ungated_mlp(inventory, f"{prefix}mlp.", hidden, activation, "fc1", "fc2")
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, None, parallel=True), part | ffn_part)

    return assemble(
        checkpoint,
        inventory,
        config,
        FAMILY.name,
        layer,
        norm=whole,
        names={"mixer_norm": "input_layernorm"},
        swiglu=False,
        last="model.final_layernorm",
    )


_EXACT = Expected(target="phi2")
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"partial_rotary_factor": 0.5}, _EXACT),
    "grouped": ({"partial_rotary_factor": 0.25, "num_key_value_heads": 2}, _EXACT),
    "qk-norm": ({"qk_layernorm": True}, Expected(refused="qk_layernorm is true", oracle=False)),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    stated = {"model_type": "phi", "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "num_key_value_heads": 4}
    config = {**tiny_attention.BASE, **stated, **VARIANTS[variant][0]}
    hidden, width = tiny_attention.HIDDEN, tiny_attention.WIDTH
    keys = hidden // tiny_attention.HEADS * config["num_key_value_heads"]
    shapes: tiny_attention.Shapes = {"model.embed_tokens.weight": (tiny_attention.VOCAB, hidden)}
    matrices = {"model.final_layernorm": (hidden,), "lm_head": (tiny_attention.VOCAB, hidden)}
    for n in range(tiny_attention.LAYERS):
        prefix = f"model.layers.{n}."
        matrices |= {
            f"{prefix}input_layernorm": (hidden,),
            f"{prefix}self_attn.q_proj": (hidden, hidden),
            f"{prefix}self_attn.k_proj": (keys, hidden),
            f"{prefix}self_attn.v_proj": (keys, hidden),
            f"{prefix}self_attn.{OUTPUT}": (hidden, hidden),
            f"{prefix}mlp.fc1": (width, hidden),
            f"{prefix}mlp.fc2": (hidden, width),
        }
    for name, shape in matrices.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="phi",
    title="Phi-1, Phi-1.5, Phi-2",
    model_types=("phi",),
    matches=matches,
    build=build,
    preferred_targets=("phi2",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
