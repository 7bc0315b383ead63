"""llama.cpp's `ernie4_5-moe`: leading dense layers, then experts, RoPE in interleaved pairs on whole heads
(`src/models/ernie4-5-moe.cpp`).

The router is a softmax, renormalised, and selects by score plus bias; it may have no bias, and the layers no shared expert. The
loader takes every layer behind the dense ones to have experts, so `interleave_moe_layer_step` is 1. As in `step35`, weights
that sum to less than 6.1e-5 are not renormalised.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import FeedForward, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    EXPERTS,
    NO_SHARED_GATE,
    PAIRS_INTERLEAVED,
    ROPE_SCALING,
    SHARED_EXPERT,
    attention_limits,
    leading_dense_limits,
    mlp_limits,
    moe_limits,
    moes,
    norm_limits,
    same,
)

NAME = "ernie4_5-moe"
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    "ffn_norm": "ffn_norm.weight",
    **names.FFN_NAMES,
    **names.MOE_NAMES,
}

EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_INTERLEAVED
    | ROPE_SCALING
    | DENSE
    | EXPERTS
    | {"Router.score_bias"}
    | SHARED_EXPERT
    | NO_SHARED_GATE
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = leading_dense_limits(spec) + same((moe.shared for moe in moes(spec)), "the shared expert")
    return found + moe_limits(spec) + attention_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as an `ernie4_5-moe` file: tensors are renamed, their values do not change."""
    metadata = lowering.common_metadata(NAME, model.spec) | lowering.scored_moe_metadata(NAME, model.spec)
    metadata[f"{NAME}.interleave_moe_layer_step"] = u32(1)
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model. Raises UnsupportedError if only every so many layers have experts."""
    step = source.integer("interleave_moe_layer_step")
    if step != 1:
        raise UnsupportedError(
            f"{source.path}: {NAME}.interleave_moe_layer_step is {step}; expected 1, since tinyq does not support experts in "
            "every so many layers"
        )

    def layer(n: int, norm: Norm) -> Layer:
        ffn: FeedForward
        mixer, part = lifting.lift_attention(source, n, norm)
        rope = replace(lifting.lift_rope(source, mixer.head_dim), pairs="interleaved")
        if n < source.integer("leading_dense_block_count", 0):
            ffn, ffn_part = lifting.lift_mlp(source, n)
        else:
            ffn, ffn_part = lifting.lift_moe(source, n)
            ffn = replace(ffn, router=replace(ffn.router, score_bias="moe.router_bias" in ffn_part))
        return Layer(LayerSpec(replace(mixer, rope=rope), ffn, norm, norm), part | ffn_part)

    return lifting.lift_layers(source, layer, "ffn_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(INTERLEAVED_PAIRS,),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
