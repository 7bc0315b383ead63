"""LFM2-MoE in Hugging Face layout (transformers: Lfm2MoeForCausalLM): LFM2 with experts in all but the first layers.

The router scores by sigmoids, and `expert_bias` is added to the scores for the selection. 1e-6 is added to the sum by which the
selected experts' scores are divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf, lfm2
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.attention import HIDDEN, VOCAB
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import FeedForward, LayerTensors, Model, MoE, Router
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.views import stack

BIAS = "expert_bias"
SUM_EPS = 1e-6


def matches(checkpoint: Checkpoint) -> bool:
    """`operator_norm` before each mixer, and a router in some feed-forward."""
    routed = any(name.endswith(".feed_forward.gate.weight") for name in checkpoint.tensors)
    return routed and "model.layers.0.operator_norm.weight" in checkpoint.tensors


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model. Raises CheckpointError for missing, leftover or misshapen tensors."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("lfm2_moe"))

    def feed_forward(prefix: str, hidden: int) -> tuple[FeedForward, LayerTensors]:
        routed = f"{prefix}gate.weight" in inventory
        return _experts(inventory, config, prefix, hidden) if routed else lfm2.dense(inventory, prefix, hidden)

    dense = sum(name.endswith(".feed_forward.w1.weight") for name in checkpoint.tensors)
    config.expect("num_dense_layers", dense)
    return lfm2.decoder(checkpoint, inventory, config, FAMILY.name, feed_forward)


def _experts(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[MoE, LayerTensors]:
    """A layer's router and experts; the latter are one tensor each (w1, w3, w2), or fused."""
    gate = inventory.take(f"{prefix}gate.weight", None, hidden)
    experts, top_k = gate.shape[0], config.integer("num_experts_per_tok")
    if top_k > experts:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {top_k}, but the router has {experts} experts")
    part: LayerTensors = {"moe.router": gate}
    if f"{prefix}experts.gate_up_proj" in inventory:
        names = (f"{prefix}experts.gate_up_proj", f"{prefix}experts.down_proj")
        part |= hf.fused_experts(inventory, *names, experts, hidden)
    else:
        width = inventory.shape(f"{prefix}experts.0.w1.weight")[0]
        shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        for name, shape in shapes.items():
            every = [f"{prefix}experts.{e}.{lfm2.MATRICES[name]}.weight" for e in range(experts)]
            part[f"moe.{name}"] = stack([inventory.take(one, *shape) for one in every])
    biased = f"{prefix}{BIAS}" in inventory
    if biased != config.flag("use_expert_bias", biased):
        has = "have" if biased else "do not have"
        raise CheckpointError(
            f"{config.path}: use_expert_bias is {not biased}, but the tensors {has} {prefix}{BIAS}; correct one of the two"
        )
    if biased:
        part["moe.router_bias"] = inventory.take(f"{prefix}{BIAS}", experts)
    width = part["moe.gate"].shape[1]
    config.expect("num_experts", experts)
    config.expect("moe_intermediate_size", width)
    router = Router(
        top_k=top_k,
        normalised=config.flag("norm_topk_prob", True),
        sum_eps=SUM_EPS,
        scale=config.number("routed_scaling_factor", 1.0),
        score="sigmoid",
        score_bias=biased,
    )
    return MoE(experts, width, router), part


EXPERTS, EXPERT_WIDTH = 6, 40
BASE: Mapping[str, Any] = {
    **lfm2.BASE,
    "model_type": "lfm2_moe",
    "num_dense_layers": 1,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": EXPERT_WIDTH,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
_PLAIN = Expected(target="lfm2moe")
_FOLDED = Expected(target="lfm2moe", rewrites=("router scale folded into the experts",))
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any], Expected]] = {
    "plain": ("CACC", {}, _PLAIN),
    "scaled": ("CAC", {"routed_scaling_factor": 2.5, "use_expert_bias": False, "num_dense_layers": 0}, _FOLDED),
    "not-renormalised": ("CAC", {"norm_topk_prob": False}, Expected(refused="lfm2moe does not support router weights")),
}
"""For each variant: its layers (C convolution, A attention), more keys of its config.json, and what converting it must give."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """Write a small random checkpoint with a tokenizer; its experts are one tensor each, as published."""
    layers, changes, _ = VARIANTS[variant]
    kinds = ["full_attention" if letter == "A" else "conv" for letter in layers]
    config = {**BASE, "num_hidden_layers": len(layers), "layer_types": kinds, **changes}
    shapes = lfm2.shapes(layers, config)
    for n in range(config["num_dense_layers"], len(layers)):
        prefix = f"model.layers.{n}.feed_forward."
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}
        shapes[f"{prefix}gate.weight"] = (EXPERTS, HIDDEN)
        shapes |= {f"{prefix}{BIAS}": (EXPERTS,)} if config["use_expert_bias"] else {}
        for expert in range(EXPERTS):
            for name in ("w1", "w3", "w2"):
                shape = (HIDDEN, EXPERT_WIDTH) if name == "w2" else (EXPERT_WIDTH, HIDDEN)
                shapes[f"{prefix}experts.{expert}.{name}.weight"] = shape
    tensors = random_tensors(shapes, seed, gain=tiny_attention.GAIN)
    write_checkpoint(folder, config, tensors)
    write_tiny_tokenizer(folder, VOCAB)


FAMILY = Family(
    name="lfm2-moe",
    title="LFM2-MoE",
    model_types=("lfm2_moe",),
    matches=matches,
    build=build,
    preferred_targets=("lfm2moe",),
    variants={name: expected for name, (_, _, expected) in VARIANTS.items()},
    tiny=tiny,
)
