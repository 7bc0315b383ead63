"""gpt-oss in Hugging Face layout (transformers: GptOssForCausalLM).

Every head has a sink, every second layer a sliding window. Experts have biases and a clamped SwiGLU; `gate_up_proj` has the
columns of gate and up in turn. The router's bias counts for the weights too, which are a softmax over the selected experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import ClampedSwiGLU, Layer, LayerSpec, LayerTensors, Model, MoE, Norm, Router
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import matrices, stack, take_columns, transposed

SINKS = "self_attn.sinks"


def matches(checkpoint: Checkpoint) -> bool:
    """Attention sinks, and a router beside experts."""
    names = checkpoint.tensors
    return all(f"model.layers.0.{name}" in names for name in (SINKS, "mlp.router.weight", "self_attn.q_proj.weight"))


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("gpt_oss"))
    clamp = ClampedSwiGLU(slope=config.number("swiglu_alpha", 1.702), limit=config.number("swiglu_limit", 7.0))

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None, window, whole_rope=True)
        part["attn.sinks"] = inventory.take(f"{prefix}{SINKS}", mixer.heads)
        moe, moe_part = _experts(inventory, config, f"{prefix}mlp.", hidden)
        return Layer(LayerSpec(replace(mixer, sinks=True), replace(moe, clamped=clamp), norm, norm), part | moe_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


def _experts(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[MoE, LayerTensors]:
    """The router, (experts, hidden), and experts: (experts, hidden, 2 · width) and (experts, width, hidden), with biases."""
    router = inventory.take(f"{prefix}router.weight", None, hidden)
    experts = router.shape[0]
    width = inventory.shape(f"{prefix}experts.gate_up_proj", 3)[2] // 2
    both = inventory.take(f"{prefix}experts.gate_up_proj", experts, hidden, 2 * width)
    bias = inventory.take(f"{prefix}experts.gate_up_proj_bias", experts, 2 * width)
    down = inventory.take(f"{prefix}experts.down_proj", experts, width, hidden)
    part: LayerTensors = {"moe.router": router, "moe.logit_bias": inventory.take(f"{prefix}router.bias", experts)}
    for name, columns in (("gate", np.arange(0, 2 * width, 2)), ("up", np.arange(1, 2 * width, 2))):
        part[f"moe.{name}"] = stack([transposed(take_columns(each, columns)) for each in matrices(both)])
        part[f"moe.{name}_bias"] = take_columns(bias, columns)
    part["moe.down"] = stack([transposed(each) for each in matrices(down)])
    part["moe.down_bias"] = inventory.take(f"{prefix}experts.down_proj_bias", experts, hidden)
    config.expect("num_local_experts", experts)
    config.expect("intermediate_size", width)
    top_k = config.integer("num_experts_per_tok")
    if top_k > experts:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {top_k}, but the router has {experts} experts")
    return MoE(experts, width, Router(top_k=top_k, logit_bias=True), bias=frozenset({"gate", "up", "down"})), part


_STATED: Mapping[str, Any] = {
    "model_type": "gpt_oss",
    "head_dim": 32,
    "num_local_experts": tiny_attention.EXPERTS,
    "num_experts_per_tok": 2,
    "intermediate_size": tiny_attention.EXPERT_WIDTH,
    "sliding_window": tiny_attention.WINDOW,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "rope_theta": 150000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
}
_YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, Expected(target="gpt-oss")),
    "tied": ({"tie_word_embeddings": True}, Expected(target="gpt-oss", rewrites=("output written out",))),
    "no-window": ({"layer_types": ["full_attention"] * tiny_attention.LAYERS}, Expected(target="gpt-oss")),
    "yarn": ({"rope_parameters": _YARN}, Expected(target="gpt-oss")),
    "yarn-published": (
        {"rope_parameters": {**_YARN, "truncate": False}},
        Expected(target="gpt-oss", refused="YaRN without truncation of the correction range", nmse=1e-1),
    ),
    "another-limit": ({"swiglu_limit": 3.0}, Expected(refused="experts clamped at 3")),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {**tiny_attention.BASE, **_STATED, **VARIANTS[variant][0]}
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config, bias="qkvo"))
    shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    hidden, width, experts = tiny_attention.HIDDEN, tiny_attention.EXPERT_WIDTH, tiny_attention.EXPERTS
    for n in range(tiny_attention.LAYERS):
        prefix = f"model.layers.{n}."
        shapes |= {
            f"{prefix}{SINKS}": (tiny_attention.HEADS,),
            f"{prefix}mlp.router.weight": (experts, hidden),
            f"{prefix}mlp.router.bias": (experts,),
            f"{prefix}mlp.experts.gate_up_proj": (experts, hidden, 2 * width),
            f"{prefix}mlp.experts.gate_up_proj_bias": (experts, 2 * width),
            f"{prefix}mlp.experts.down_proj": (experts, width, hidden),
            f"{prefix}mlp.experts.down_proj_bias": (experts, hidden),
        }
    # Gate and up are large enough that their clamps act; the last axis of these weights is the output's.
    gain = {**tiny_attention.GAIN, "gate_up_proj_bias": 3.0, "gate_up_proj": 3.0, "router.weight": 2.0}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=gain))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="gpt-oss",
    title="gpt-oss",
    model_types=("gpt_oss",),
    matches=matches,
    build=build,
    preferred_targets=("gpt-oss",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
