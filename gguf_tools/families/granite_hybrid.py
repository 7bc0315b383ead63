"""Granite 4 (transformers: GraniteMoeHybridForCausalLM) and Granite MoE with a shared expert (GraniteMoeSharedForCausalLM).

Each layer has Mamba-2 or attention, with rope or without, and `shared_mlp` alone or beside experts; the scales are those of
Granite 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.families import granite, hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.state_space import mamba2, mixer_shapes, step_limit
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import EXPERT_WIDTH, EXPERTS, HIDDEN, SHARED_WIDTH
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import (
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Mamba2,
    Mixer,
    Model,
    Norm,
    SharedExpert,
)
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import take

ROPED = "granitemoeshared"
"""The class that always has rope; the other's config says so."""
KINDS = {"linear_attention": "mamba", "full_attention": "attention"}
"""Newer names in `layer_types`, and the published ones."""


def matches(checkpoint: Checkpoint) -> bool:
    """`shared_mlp` with gate and up in one matrix."""
    return "model.layers.0.shared_mlp.input_linear.weight" in checkpoint.tensors


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises CheckpointError for missing, leftover or misshapen tensors."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("granitemoehybrid"))
    scales = granite.scales(config)
    if config.kind is None and "position_embedding_type" not in config.values:
        raise config.wrong("position_embedding_type", None, '"rope", or "nope" for attention without rope')
    roped = config.values.get("position_embedding_type") == "rope" or config.kind == ROPED

    def mixer_of(prefix: str, hidden: int, norm: Norm) -> tuple[Mixer, LayerTensors]:
        """A layer's Mamba-2 or attention, whichever its tensors are."""
        stated = config.values.get("layer_types")
        named = (
            stated[layer_number(prefix)] if isinstance(stated, list) and layer_number(prefix) < len(stated) else None
        )
        recurrent = f"{prefix}mamba.A_log" in inventory
        if isinstance(named, str) and KINDS.get(named, named) != ("mamba" if recurrent else "attention"):
            config.note(f"config.json says layer {layer_number(prefix)} is {named}, but its tensors are not")
        if recurrent:
            groups, limit = config.integer("mamba_n_groups"), step_limit(config)
            return mamba2(inventory, config, f"{prefix}mamba.", hidden, groups=groups, norm=norm, step_limit=limit)
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, None)
        return replace(mixer, scale=scales["attention_multiplier"], rope=mixer.rope if roped else None), part

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = mixer_of(prefix, hidden, norm)
        ffn, ffn_part = _feed_forward(inventory, config, prefix, hidden)
        spec = LayerSpec(mixer, ffn, norm, norm, residual_scale=scales["residual_multiplier"])
        return Layer(spec, part | ffn_part)

    fields = {"embedding_scale": scales["embedding_multiplier"], "logit_scale": 1.0 / scales["logits_scaling"]}
    return assemble(checkpoint, inventory, config, FAMILY.name, layer, fields=fields)


def _feed_forward(
    inventory: Inventory, config: ClassConfig, prefix: str, hidden: int
) -> tuple[FeedForward, LayerTensors]:
    """`shared_mlp`: alone a dense feed-forward, beside `block_sparse_moe` a shared expert without a gate."""
    both = inventory.take(f"{prefix}shared_mlp.input_linear.weight", None, hidden)
    width = both.shape[0] // 2
    shared: LayerTensors = {
        "gate": take(both, range(width)),
        "up": take(both, range(width, both.shape[0])),
        "down": inventory.take(f"{prefix}shared_mlp.output_linear.weight", hidden, width),
    }
    config.expect("shared_intermediate_size", width)
    if f"{prefix}block_sparse_moe.router.layer.weight" not in inventory:
        return GatedMLP(width), {f"ffn.{name}": tensor for name, tensor in shared.items()}
    moe, part = granite.experts(inventory, config, f"{prefix}block_sparse_moe.", hidden)
    config.expect("intermediate_size", moe.width)
    moe = replace(moe, shared=SharedExpert(width, gated=False))
    return moe, part | {f"shared.{name}": tensor for name, tensor in shared.items()}


SPACE = Mamba2(heads=4, head_dim=32, groups=2, state=16, kernel=4, norm=Norm(1e-5), conv_bias=True)
BASE: Mapping[str, Any] = {
    **tiny_attention.BASE,
    **granite.TINY_SCALES,
    "model_type": "granitemoehybrid",
    "intermediate_size": EXPERT_WIDTH,
    "shared_intermediate_size": SHARED_WIDTH,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "position_embedding_type": "nope",
    "mamba_n_heads": SPACE.heads,
    "mamba_d_head": SPACE.head_dim,
    "mamba_n_groups": SPACE.groups,
    "mamba_d_state": SPACE.state,
    "mamba_d_conv": SPACE.kernel,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}
_DENSE = {"num_local_experts": 0, "position_embedding_type": "rope"}
_PAIRS = ("rope in interleaved pairs",)
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any], Expected]] = {
    "plain": ("MAM", {}, Expected(target="granitehybrid")),
    "dense": (
        "MMA",
        _DENSE | {"tie_word_embeddings": True, "mamba_conv_bias": False, "attention_bias": True},
        Expected(target="granitehybrid", rewrites=_PAIRS),
    ),
    "attention-only": ("AA", _DENSE, Expected(target="granite", rewrites=_PAIRS)),
    "dense-no-rope": ("AA", {"num_local_experts": 0}, Expected(target="granite")),
    "no-rope": ("AA", {}, Expected(refused="granitehybrid does not support a model without state space layers")),
    "shared": ("AA", {"model_type": ROPED}, Expected(target="granitemoe", rewrites=_PAIRS)),
    "state-space-only": ("MM", {}, Expected(refused="granitehybrid does not support a model without full attention")),
}
"""For each variant: its layers (M Mamba-2, A attention), more keys of its config.json, and what converting it must give."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with a tokenizer."""
    letters, changes, _ = VARIANTS[variant]
    kinds = ["mamba" if letter == "M" else "attention" for letter in letters]
    config = {**BASE, "num_hidden_layers": len(letters), "layer_types": kinds, **changes}
    if config["model_type"] == ROPED:
        config = {key: v for key, v in config.items() if not key.startswith(("mamba", "layer_types", "position"))}
    bias = "qkvo" if config.get("attention_bias") else ""
    shapes = tiny_attention.shapes(tiny_attention.Variant(config=config, bias=bias, layers=len(letters)))
    space = replace(SPACE, conv_bias=config.get("mamba_conv_bias", True))
    for n, letter in enumerate(letters):
        prefix = f"model.layers.{n}."
        gone = (f"{prefix}mlp.", f"{prefix}self_attn." if letter == "M" else f"{prefix}mlp.")
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(gone)}
        if letter == "M":
            shapes |= {f"{prefix}mamba.{name}": shape for name, shape in mixer_shapes(space, HIDDEN).items()}
        shapes[f"{prefix}shared_mlp.input_linear.weight"] = (2 * SHARED_WIDTH, HIDDEN)
        shapes[f"{prefix}shared_mlp.output_linear.weight"] = (HIDDEN, SHARED_WIDTH)
        if config["num_local_experts"]:
            moe = f"{prefix}block_sparse_moe."
            shapes[f"{moe}router.layer.weight"] = (EXPERTS, HIDDEN)
            shapes[f"{moe}input_linear.weight"] = (EXPERTS, 2 * EXPERT_WIDTH, HIDDEN)
            shapes[f"{moe}output_linear.weight"] = (EXPERTS, HIDDEN, EXPERT_WIDTH)
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain={**tiny_attention.GAIN, "router": 2.0}))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="granite-hybrid",
    title="Granite 4, Granite MoE with a shared expert",
    model_types=("granitemoehybrid", ROPED),
    matches=matches,
    build=build,
    preferred_targets=("granitehybrid", "granite", "granitemoe", "llama"),
    variants={name: expected for name, (_, _, expected) in VARIANTS.items()},
    tiny=tiny,
)
