"""Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini in Hugging Face layout (transformers: Phi3ForCausalLM).

Llama's arithmetic with fused projections: the rows of `qkv_proj` are all of q, then all of k, then all of v; the rows of
`gate_up_proj` are all of gate, then all of up. Every layer has the sliding window that the config states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.hf_rope import rope, scaling_kind, stated_rope
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import Attention, GatedMLP, Layer, LayerSpec, LayerTensors, Model, Norm
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import take

LONGROPE = {"su": "longrope", "yarn": "longrope"}
"""What older configs call longrope."""
QKV, GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"


def matches(checkpoint: Checkpoint) -> bool:
    """Fused q, k and v, fused gate and up, and no q/k norms."""
    names = checkpoint.tensors
    fused = all(f"model.layers.0.{name}" in names for name in (QKV, GATE_UP))
    return fused and not any(name.endswith("self_attn.q_norm.weight") for name in names)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises UnsupportedError for rope scaling other than longrope, as Phi-3's class does."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("phi3"))
    scaling = scaling_kind(stated_rope(config))
    if scaling not in ("default", "longrope", *LONGROPE):
        raise UnsupportedError(f"{config.path}: rope scaling {scaling!r} is not Phi-3's; longrope is")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = _attention(inventory, config, prefix, hidden)
        width = inventory.shape(f"{prefix}{GATE_UP}")[0] // 2
        both = inventory.take(f"{prefix}{GATE_UP}", 2 * width, hidden)
        part |= {"ffn.gate": take(both, range(width)), "ffn.up": take(both, range(width, 2 * width))}
        part["ffn.down"] = inventory.take(f"{prefix}mlp.down_proj.weight", hidden, width)
        config.expect("intermediate_size", width)
        return Layer(LayerSpec(mixer, GatedMLP(width), norm, norm), part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


def _attention(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[Attention, LayerTensors]:
    """Attention from `qkv_proj`, ((heads + 2 * kv_heads) * head_dim, hidden): the rows of q, then k, then v."""
    wide = inventory.shape(f"{prefix}self_attn.o_proj.weight")[1]
    rows = inventory.shape(f"{prefix}{QKV}")[0]
    dim = config.head_dim(wide, (rows - wide) // 2, hidden)
    heads, kv_heads = wide // dim, (rows - wide) // (2 * dim)
    if heads * dim != wide or kv_heads < 1 or wide + 2 * kv_heads * dim != rows or heads % kv_heads:
        raise CheckpointError(
            f"{inventory.path}: {prefix}{QKV} has {rows} rows and o_proj {wide} columns, which do not divide into heads of "
            f"{dim} in equal groups; check head_dim and num_attention_heads in config.json"
        )
    for key, actual in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads), ("head_dim", dim)):
        config.expect(key, actual)
    qkv, keys = inventory.take(f"{prefix}{QKV}", rows, hidden), kv_heads * dim
    part: LayerTensors = {
        "attn.q": take(qkv, range(wide)),
        "attn.k": take(qkv, range(wide, wide + keys)),
        "attn.v": take(qkv, range(wide + keys, rows)),
        "attn.o": inventory.take(f"{prefix}self_attn.o_proj.weight", hidden, wide),
    }
    window, turned = config.window(layer_number(prefix)), rope(config, dim, aliases=LONGROPE)
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=turned, window=window), part


_AS_LLAMA = Expected(target="llama", rewrites=("rope in interleaved pairs",))
_PART = "rope on a part of a head by frequency factors"
_LONG = Expected(target="phi3", notes=("longrope has other frequencies for sequences above",))
_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + n / 8 for n in range(8)],
    "long_factor": [2.0 + n for n in range(8)],
}
_SU = {"type": "su", "short_factor": [1.5] * 6, "long_factor": [1.0 + n for n in range(6)], "attention_factor": 1.3}
_ORIGINAL = "original_max_position_embeddings"
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({}, _AS_LLAMA),
    "tied": ({"tie_word_embeddings": True}, _AS_LLAMA),
    "window": ({"sliding_window": tiny_attention.WINDOW}, replace(_AS_LLAMA, target="granite_swa")),
    "partial-rope": ({"partial_rotary_factor": 0.75}, replace(_AS_LLAMA, rewrites=(*_AS_LLAMA.rewrites, _PART))),
    # llama.cpp's contexts are multiples of 256: it takes the short factors of the first of these, the long ones of the others.
    "longrope-short": ({"rope_scaling": _LONGROPE, _ORIGINAL: 256, "max_position_embeddings": 1024}, _LONG),
    "longrope-long": ({"rope_scaling": _LONGROPE, _ORIGINAL: 12}, _LONG),
    "su": ({"rope_scaling": {**_SU, _ORIGINAL: 12}, _ORIGINAL: 12, "partial_rotary_factor": 0.75}, _LONG),
    "linear": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        Expected(refused="rope scaling 'linear'", oracle=False),
    ),
}
"""For each variant: the keys of its config.json, and what converting it must give."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint: Llama's tensors, with fused projections."""
    config = {**tiny_attention.BASE, "model_type": "phi3", "pad_token_id": 0, **VARIANTS[variant][0]}
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config))
    tensors = random_tensors(shapes, seed, gain=tiny_attention.GAIN)
    for n in range(tiny_attention.LAYERS):
        prefix = f"model.layers.{n}."
        for fused, names in ((QKV, "qkv"), (GATE_UP, ("gate", "up"))):
            room = prefix + fused.partition(".")[0]
            tensors[prefix + fused] = np.concatenate([tensors.pop(f"{room}.{name}_proj.weight") for name in names])
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="phi3",
    title="Phi-3, Phi-4",
    model_types=("phi3",),
    matches=matches,
    build=build,
    preferred_targets=("llama", "granite_swa", "phi3"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
