"""Bamba in Hugging Face layout (transformers: BambaForCausalLM): Mamba-2 in most layers, attention in those of
`attn_layer_indices`, and a dense feed-forward in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.state_space import mamba2, mixer_shapes, step_limit
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import HIDDEN
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Layer, LayerSpec, LayerTensors, Mamba2, Mixer, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint

NORMS = {"mixer_norm": "input_layernorm", "ffn_norm": "pre_ff_layernorm"}
PARTIAL = "partial_rotary_factor"


def matches(checkpoint: Checkpoint) -> bool:
    """A state space or attention in the first layer, not both, with Falcon-H1's feed-forward and norm; some state space."""
    names, first = checkpoint.tensors, "model.layers.0."
    mixers = [f"{first}{name}" in names for name in ("mamba.A_log", "self_attn.q_proj.weight")]
    alike = all(f"{first}{name}.weight" in names for name in ("feed_forward.gate_proj", "pre_ff_layernorm"))
    return alike and mixers[0] != mixers[1] and any(name.endswith(".mamba.A_log") for name in names)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises CheckpointError for missing, leftover or misshapen tensors."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("bamba"))
    groups, limit = config.integer("mamba_n_groups"), step_limit(config)
    if config.kind and config.values.get(PARTIAL, 0.5) != 0.5:
        config.unheeded(PARTIAL, config.values[PARTIAL])
        config.values = {**config.values, PARTIAL: 0.5}
    listed = config.values.get("attn_layer_indices") or []
    if not isinstance(listed, list):
        raise config.wrong("attn_layer_indices", listed, "a list of layers' numbers")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """A layer with Mamba-2 or attention, whichever its tensors are."""
        mixer: Mixer
        part: LayerTensors
        recurrent = f"{prefix}mamba.A_log" in inventory
        if recurrent == (layer_number(prefix) in listed):
            config.note(f"attn_layer_indices in config.json is {listed}, which the tensors of {prefix}* contradict")
        if recurrent:
            mixer, part = mamba2(
                inventory, config, f"{prefix}mamba.", hidden, groups=groups, norm=norm, step_limit=limit
            )
        else:
            mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}feed_forward.", hidden)
        config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), {**part, **ffn_part})

    return assemble(checkpoint, inventory, config, FAMILY.name, layer, names=NORMS, last="model.final_layernorm")


SPACE = Mamba2(heads=4, head_dim=32, groups=2, state=16, kernel=4, norm=Norm(1e-5), conv_bias=True)
BASE: Mapping[str, Any] = {
    **tiny_attention.BASE,
    "model_type": "bamba",
    "attn_layer_indices": [1],
    PARTIAL: 0.5,
    "mamba_n_heads": SPACE.heads,
    "mamba_d_head": SPACE.head_dim,
    "mamba_n_groups": SPACE.groups,
    "mamba_d_state": SPACE.state,
    "mamba_d_conv": SPACE.kernel,
    "mamba_expand": 2,
    "pad_token_id": 0,
}
_REWRITES = ("rope in interleaved pairs", "rope on a part of a head by frequency factors")
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, Expected(target="granitehybrid", rewrites=_REWRITES)),
    "biases": (
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, PARTIAL: 1.0},
        Expected(target="granitehybrid", rewrites=_REWRITES, notes=(f"{PARTIAL} 1.0, which transformers ignores",)),
    ),
    "projection-bias": ({"mamba_proj_bias": True}, Expected(refused="biases on the state space's input projection")),
}
"""Keys of each variant's config.json, and what converting it must give."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with a tokenizer: Llama's tensors, with a state space where there is no attention."""
    config = {**BASE, **VARIANTS[variant][0]}
    bias = "qkvo" if config.get("attention_bias") else ""
    made = tiny_attention.Variant(config=config, bias=bias, mlp_bias=bool(config.get("mlp_bias")))
    space = replace(SPACE, bias=frozenset({"in", "o"} if config.get("mamba_proj_bias") else ()))
    shapes = {}
    for name, shape in tiny_attention.shapes(made).items():
        renamed = name.replace("model.norm.", "model.final_layernorm.").replace(".post_attention_", ".pre_ff_")
        shapes[renamed.replace(".mlp.", ".feed_forward.")] = shape
    for n in set(range(tiny_attention.LAYERS)) - set(config["attn_layer_indices"]):
        prefix = f"model.layers.{n}."
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{prefix}self_attn.")}
        shapes |= {f"{prefix}mamba.{name}": shape for name, shape in mixer_shapes(space, HIDDEN).items()}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="bamba",
    title="Bamba",
    model_types=("bamba",),
    matches=matches,
    build=build,
    preferred_targets=("granitehybrid",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
