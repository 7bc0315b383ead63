"""GLM-4-MoE (GLM-4.5 to 4.7) and dots.llm1 in Hugging Face layout (transformers: Glm4MoeForCausalLM, Dots1ForCausalLM).

The first layers are dense. The others have experts scored by sigmoids, a bias on the scores for the selection alone
(`e_score_correction_bias`), and shared experts without a gate. GLM rotates a part of each head and may have q/k norms; dots.llm1
rotates whole heads, always has q/k norms, and may have sliding windows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import UnsupportedError
from gguf_tools.families import hf
from gguf_tools.families.assemble import assemble
from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hf_classes import bare
from gguf_tools.families.hf_config import ClassConfig
from gguf_tools.families.reading import Inventory, layer_number
from gguf_tools.families.tiny import attention as tiny_attention
from gguf_tools.families.tiny.writing import random_tensors, write_checkpoint, write_tiny_tokenizer
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, MoE, Norm, Router
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

BIAS = "gate.e_score_correction_bias"


def matches(checkpoint: Checkpoint) -> bool:
    """Llama's attention, with q/k norms or without, and experts whose scores have a correction bias beside the router."""
    seen = signature(without_prediction_block(checkpoint))
    plain = seen.attention and seen.two_norms and not (seen.gated or seen.linear or seen.separate)
    return plain and any(name.endswith(f".mlp.{BIAS}") for name in checkpoint.tensors)


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model, without its MTP block; UnsupportedError for experts selected by groups."""
    checkpoint = without_prediction_block(checkpoint)
    inventory, config = Inventory(checkpoint), ClassConfig(checkpoint, FAMILY.model_types, bare("glm4_moe"))
    _refuse_groups(config)
    router = Router(
        top_k=config.integer("num_experts_per_tok"),
        normalised=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 1.0),
        score="sigmoid",
    )

    def layer(prefix: str, hidden: int, norm: Norm) -> Layer:
        """A layer with experts, or a dense one, depending on the tensors under `prefix`."""
        ffn: FeedForward
        window = config.window(layer_number(prefix))
        mixer, part = hf.attention(inventory, config, f"{prefix}self_attn.", hidden, norm, window)
        if hf.has_experts(inventory, f"{prefix}mlp."):
            ffn, ffn_part = hf.scored_moe(inventory, config, f"{prefix}mlp.", hidden, router, BIAS)
            config.expect("n_routed_experts", ffn.experts)
            if ffn.shared:
                config.expect("n_shared_experts", ffn.shared.width // ffn.width)
        else:
            ffn, ffn_part = hf.gated_mlp(inventory, f"{prefix}mlp.", hidden)
            config.expect("intermediate_size", ffn.width)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    model = assemble(checkpoint, inventory, config, FAMILY.name, layer)
    dense = sum(not isinstance(layer.feed_forward, MoE) for layer in model.spec.layers)
    config.expect("first_k_dense_replace", dense)
    return replace(model, notes=tuple(dict.fromkeys((*model.notes, *config.notes))))


def without_prediction_block(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the layers behind the last that predict further tokens (those with an `eh_proj`), with a note."""
    extra = {m[1] for name in checkpoint.tensors if (m := re.fullmatch(r"(model\.layers\.\d+\.)eh_proj\.weight", name))}
    if not extra:
        return checkpoint
    left = {name: t for name, t in checkpoint.tensors.items() if not name.startswith(tuple(extra))}
    named = ", ".join(f"{prefix}*" for prefix in sorted(extra))
    note = f"the multi-token prediction block ({named}) is left out: greedy decoding does not use it"
    return replace(checkpoint, tensors=left, notes=(*checkpoint.notes, note))


def _refuse_groups(config: ClassConfig) -> None:
    """Raise UnsupportedError if experts are selected from some of several groups (n_group, topk_group) alone."""
    groups, used = config.values.get("n_group"), config.values.get("topk_group")
    if groups not in (None, 1) and groups != used:
        raise UnsupportedError(
            f"{config.path}: n_group is {groups!r} and topk_group {used!r}: experts are selected from some groups alone, which "
            "is not supported"
        )


_ROUTED: Mapping[str, Any] = {
    "n_routed_experts": tiny_attention.EXPERTS,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": tiny_attention.EXPERT_WIDTH,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
}
_GLM: Mapping[str, Any] = {**_ROUTED, "model_type": "glm4_moe", "head_dim": 32, "partial_rotary_factor": 0.5}
_DOTS: Mapping[str, Any] = {**_ROUTED, "model_type": "dots1", "head_dim": 32, "sliding_window": None}
_EXACT = Expected(target="glm4moe")
_MTP = "multi-token prediction block (model.layers.3.*) is left out"
VARIANTS: Mapping[str, tuple[Mapping[str, Any], Expected]] = {
    "plain": ({**_GLM, "attention_bias": True}, _EXACT),
    "qk-norm": ({**_GLM, "use_qk_norm": True, "n_shared_experts": 2, "tie_word_embeddings": True}, _EXACT),
    "not-renormalised": ({**_GLM, "norm_topk_prob": False, "first_k_dense_replace": 2}, _EXACT),
    # transformers knows the block by the numbers of the published models' layers alone
    "prediction-block": ({**_GLM, "num_nextn_predict_layers": 1}, replace(_EXACT, notes=(_MTP,), oracle=False)),
    "dots": (_DOTS, _EXACT),
    "dots-window": (
        {**_DOTS, "sliding_window": tiny_attention.WINDOW, "max_window_layers": 1},
        Expected(target="step35"),
    ),
    "groups": ({**_GLM, "n_group": 2}, Expected(refused="n_group is 2 and topk_group 1", oracle=False)),
}
"""Keys of each variant's config.json, and what it shows."""


def tiny(folder: Path, variant: str, seed: int) -> None:
    """A random small checkpoint of one of the variants."""
    config = {**tiny_attention.BASE, **VARIANTS[variant][0]}
    made = tiny_attention.Variant(
        config=config,
        bias="qkv" if config.get("attention_bias") else "",
        qk_norm=config["model_type"] == "dots1" or bool(config.get("use_qk_norm")),
        experts="separate",
        dense=tuple(range(config["first_k_dense_replace"])),
    )
    width = tiny_attention.EXPERT_WIDTH * config["n_shared_experts"]
    shapes = tiny_attention.with_corrected_scores(tiny_attention.shapes(made), BIAS, width)
    if config.get("num_nextn_predict_layers"):
        hidden, block = tiny_attention.HIDDEN, f"model.layers.{tiny_attention.LAYERS}."
        last = f"model.layers.{tiny_attention.LAYERS - 1}."
        shapes |= {block + n.removeprefix(last): shape for n, shape in shapes.items() if n.startswith(last)}
        shapes |= {f"{block}eh_proj.weight": (hidden, 2 * hidden), f"{block}enorm.weight": (hidden,)}
    write_checkpoint(folder, config, random_tensors(shapes, seed, gain=tiny_attention.GAIN))
    write_tiny_tokenizer(folder, tiny_attention.VOCAB)


FAMILY = Family(
    name="glm4-moe",
    title="GLM-4-MoE (GLM-4.5 to 4.7), dots.llm1",
    model_types=("glm4_moe", "dots1"),
    matches=matches,
    build=build,
    preferred_targets=("glm4moe",),
    variants={name: expected for name, (_, expected) in VARIANTS.items()},
    tiny=tiny,
)
