"""llama.cpp's `glm4moe`: leading dense layers, then experts beside a shared one, RoPE in halves on a part of each head
(`src/models/glm4-moe.cpp`).

The router scores by softmax or sigmoid, and selects by score plus bias. The bias is required (zeros change nothing), and so is
the shared expert, which is as wide as a whole number of experts. As in `step35`, weights that sum to less than 6.1e-5 are
not renormalised.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, ModelSpec, MoE, Norm
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    CORRECTED_SCORES,
    DECODER,
    DENSE,
    EXPERTS,
    NO_SHARED_GATE,
    PAIRS_HALF,
    PARTIAL_ROPE,
    QK_NORM,
    ROPE_SCALING,
    SHARED_EXPERT,
    attention_limits,
    leading_dense_limits,
    mlp_limits,
    moes,
    norm_limits,
    same,
)

NAME = "glm4moe"
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    "ffn_norm": "post_attention_norm.weight",
    **names.FFN_NAMES,
    **names.MOE_NAMES,
}

EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | QK_NORM
    | DENSE
    | EXPERTS
    | CORRECTED_SCORES
    | SHARED_EXPERT
    | NO_SHARED_GATE
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    experts = moes(spec)
    found = leading_dense_limits(spec)
    found += same(experts, "experts or their router")
    if any(moe.shared is None for moe in experts):
        found.append("experts without a shared expert")
    found += [
        f"a shared expert of width {moe.shared.width} beside experts of {moe.width}"
        for moe in dict.fromkeys(experts)
        if moe.shared and moe.shared.width % moe.width
    ]
    return found + attention_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def form(layer: LayerSpec) -> LayerSpec:
    """The layer with a bias on the scores of its router, as the graph has it."""
    ffn = layer.feed_forward
    if not isinstance(ffn, MoE):
        return layer
    return replace(layer, feed_forward=replace(ffn, router=replace(ffn.router, score_bias=True)))


def lower(model: Model) -> Lowered:
    """The model as a `glm4moe` file: tensors are renamed, and biases of routers that it lacks are zeros."""
    full = lowering.completed(model, form)
    moe = moes(full.spec)[0]
    assert moe.shared
    metadata = lowering.common_metadata(NAME, full.spec) | lowering.scored_moe_metadata(NAME, full.spec)
    metadata[f"{NAME}.expert_shared_count"] = u32(moe.shared.width // moe.width)
    return Lowered(NAME, metadata, lowering.lower_tensors(full, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        ffn: FeedForward
        mixer, part = lifting.lift_attention(source, n, norm)
        if n < source.integer("leading_dense_block_count", 0):
            ffn, ffn_part = lifting.lift_mlp(source, n)
        else:
            ffn, ffn_part = lifting.lift_scored_moe(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lifting.lift_layers(source, layer, "post_attention_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(HALF_PAIRS,),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
