"""llama.cpp's `olmo`: layer norms without weights or biases, q, k and v clipped if asked for, RoPE in interleaved pairs
(`src/models/olmo.cpp`)."""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import f32, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_INTERLEAVED,
    ROPE_SCALING,
    attention_limits,
    attentions,
    layer_norm_limits,
    mlp_limits,
    norms,
    same,
    square_limits,
)

NAME = "olmo"
NAMES = {**names.ATTENTION_NAMES, **names.FFN_NAMES}

EXPRESSES = (
    (DECODER - {"Norm.offset"})
    | ATTENTION
    | PAIRS_INTERLEAVED
    | ROPE_SCALING
    | DENSE
    | {"Norm.centred", "Norm.weighted", "Attention.clip"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = ["norms with weights"] if any(norm.weighted for norm in norms(spec)) else []
    found += same((mixer.clip for mixer in attentions(spec)), "limit of queries, keys and values")
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as an `olmo` file: tensors are renamed, their values do not change."""
    metadata = lowering.common_metadata(NAME, model.spec)
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(model.spec))
    if clip := attentions(model.spec)[0].clip:
        metadata[f"{NAME}.attention.clamp_kqv"] = f32(clip)
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    clip = source.number("attention.clamp_kqv", 0.0) or None

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        rope = replace(lifting.lift_rope(source, mixer.head_dim), pairs="interleaved")
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(replace(mixer, rope=rope, clip=clip), ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer, centred=True, weighted=False)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, INTERLEAVED_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
