"""Ernie 4.5 with experts, in Hugging Face layout (transformers: Ernie4_5_MoeForCausalLM).

The first layers are dense. The others have experts scored by a softmax, a bias on the scores for the selection alone
(`moe_statics.e_score_correction_bias`), and shared experts without a gate. Rope turns interleaved pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import hf, llama
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, Norm, Router
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

BIAS = "moe_statics.e_score_correction_bias"
LEAST_SUM = 6.1e-5
"""llama.cpp divides the weights of the selected experts by their sum, or by this if their sum is less (`build_moe_ffn`)."""


def matches(checkpoint: Checkpoint) -> bool:
    """Llama's attention, and experts whose scores have a correction bias among `moe_statics`."""
    seen = signature(checkpoint)
    return llama.plain_attention(seen) and any(name.endswith(f".mlp.{BIAS}") for name in checkpoint.tensors)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model, without its MTP block."""
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("ernie4_5_moe"))
    llama.refuse_other_arithmetic(config)
    least = config.number("moe_norm_min", 1e-12)
    if least > LEAST_SUM:
        raise UnsupportedError(
            f"{config.path}: moe_norm_min is {least:g}, the least that weights of experts are divided by; expected at most "
            f"{LEAST_SUM:g}, as llama.cpp has it"
        )
    if "moe_k" not in config.values and "num_experts_per_tok" in config.values:
        router = Router(top_k=config.integer("num_experts_per_tok"))
    else:
        router = Router(top_k=config.integer("moe_k"))
    if inventory.ignore(r"model\.mtp_.*"):
        config.note("the multi-token prediction block (model.mtp_*) is left out: greedy decoding does not use it")

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """A layer with experts, or a dense one, depending on the tensors under `prefix`."""
        ffn: FeedForward
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm)
        if mixer.rope:
            mixer = replace(mixer, rope=replace(mixer.rope, pairs="interleaved"))
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.scored_moe(inventory, config, f"{prefix}mlp.", hidden, router, BIAS)
            config.expect("moe_num_experts", ffn.experts)
            config.expect("moe_num_shared_experts", ffn.shared.width // ffn.width if ffn.shared else 0)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
            config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return assemble(checkpoint, inventory, config, FAMILY.name, layer)


_ROUTED: Mapping[str, Any] = {
    "model_type": "ernie4_5_moe",
    "rope_theta": 500000.0,
    "moe_num_experts": tiny_attention.EXPERTS,
    "moe_num_shared_experts": 2,
    "moe_k": 2,
    "moe_norm_min": 1e-12,
    "moe_intermediate_size": tiny_attention.EXPERT_WIDTH,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
}
_EXACT = Expected(target="ernie4_5-moe")
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({"tie_word_embeddings": True}, _EXACT),
    "not-shared": ({"moe_num_shared_experts": 0, "moe_layer_start_index": 0, "head_dim": 32}, _EXACT),
    "dense-last": (
        {"moe_layer_start_index": 0, "moe_layer_end_index": 1},
        Expected(target="step35", rewrites=("rope in pairs half a head apart",)),
    ),
    "least-sum": ({"moe_norm_min": 0.01}, Expected(refused="moe_norm_min is 0.01", oracle=False)),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {**tiny_attention.BASE, **_ROUTED, **VARIANTS[variant][0]}
    first, last = config["moe_layer_start_index"], config["moe_layer_end_index"] % tiny_attention.LAYERS
    dense = tuple(n for n in range(tiny_attention.LAYERS) if not first <= n <= last)
    made = tiny_attention.Variant(config=config, experts="separate", dense=dense)
    width = tiny_attention.EXPERT_WIDTH * config["moe_num_shared_experts"]
    shapes = tiny_attention.with_corrected_scores(tiny_attention.shapes(made), BIAS, width)
    # The published bias has an axis more, for groups of experts, of which there is one.
    shapes = {name: (1, *shape) if name.endswith(BIAS) else shape for name, shape in shapes.items()}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="ernie4.5-moe",
    title="Ernie 4.5 with experts",
    model_types=("ernie4_5_moe",),
    matches=matches,
    build=build,
    preferred_targets=("ernie4_5-moe",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
