"""Granite 3, dense and with experts, in Hugging Face layout (transformers: GraniteForCausalLM, GraniteMoeForCausalLM).

Llama's graph with four scales: of the embeddings, of the attention scores, of what each layer adds, and of the logits. The
dense tensors are Llama's; experts lie in `block_sparse_moe`, gate and up in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, LayerTensors, Model, MoE, Norm, Router
from gguf_tools.sources.checkpoint import Checkpoint

SCALES = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def matches(checkpoint: Checkpoint) -> bool:
    """The tensors of Llama."""
    return llama.matches(checkpoint)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    return scaled_model(checkpoint, ClassConfig(checkpoint, FAMILY.model_types, bare("granite")), FAMILY.name)


def scaled_model(checkpoint: Checkpoint, config: ClassConfig, family: str) -> Model:
    """Llama's layers, dense or of experts, with Granite's four scales; CheckpointError where a scale is not above 0."""
    inventory, found = Inventory(checkpoint), scales(config)

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        mixer = replace(mixer, scale=found["attention_multiplier"])
        ffn: FeedForward
        if f"{prefix}block_sparse_moe.router.layer.weight" in inventory:
            ffn, ffn_part = experts(inventory, config, f"{prefix}block_sparse_moe.", hidden)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
        config.expect("intermediate_size", ffn.width)
        spec = LayerSpec(mixer, ffn, norm, norm, residual_scale=found["residual_multiplier"])
        return Layer(spec, part | ffn_part)

    fields = {"embedding_scale": found["embedding_multiplier"], "logit_scale": 1.0 / found["logits_scaling"]}
    return assemble(checkpoint, inventory, config, family, layer, fields=fields)


def scales(config: ClassConfig) -> dict[str, float]:
    """Granite's four scales by their keys; CheckpointError where one is not above 0."""
    return {key: config.positive(key, 1.0) for key in SCALES}


def experts(inventory: Inventory, config: ClassConfig, prefix: str, hidden: int) -> tuple[MoE, LayerTensors]:
    """`input_linear`, (experts, 2 · width, hidden): the rows of gate, then of up; `output_linear`, (experts, hidden, width)."""
    router = inventory.take(f"{prefix}router.layer.weight", None, hidden)
    count = router.shape[0]
    part = hf.fused_experts(inventory, f"{prefix}input_linear.weight", f"{prefix}output_linear.weight", count, hidden)
    config.expect("num_local_experts", count)
    top_k = config.integer("num_experts_per_tok")
    if top_k > count:
        raise CheckpointError(f"{config.path}: num_experts_per_tok is {top_k}, but the router has {count} experts")
    return MoE(count, part["moe.gate"].shape[1], Router(top_k=top_k)), {**part, "moe.router": router}


TINY_SCALES = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
_NATIVE = Expected(target="granite", rewrites=("rope in interleaved pairs",))
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": (TINY_SCALES | {"tie_word_embeddings": True}, _NATIVE),
    "biases": (TINY_SCALES | {"attention_bias": True, "mlp_bias": True}, _NATIVE),
    "no-scales": (dict.fromkeys(SCALES, 1.0), _NATIVE),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {"model_type": "granite", **VARIANTS[variant][0]}
    bias = "qkvo" if config.get("attention_bias") else ""
    made = tiny_attention.Variant(config=config, bias=bias, mlp_bias=bool(config.get("mlp_bias")))
    tiny_attention.write(folder, made, seed)


FAMILY = Family(
    name="granite",
    title="Granite 3, dense",
    model_types=("granite",),
    matches=matches,
    build=build,
    preferred_targets=("granite", "llama"),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
    by_type=True,
)
