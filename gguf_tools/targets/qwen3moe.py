"""llama.cpp's `qwen3moe`: like qwen3, with MoE in every layer, softmax router, renormalised (`src/models/qwen3moe.cpp`)."""

from __future__ import annotations

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    EXPERTS,
    PAIRS_HALF,
    QK_NORM,
    ROPE_SCALING,
    attention_limits,
    moe_limits,
    moes,
    norm_limits,
)

NAME = "qwen3moe"
NAMES = {"mixer_norm": "attn_norm.weight", **names.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **names.MOE_NAMES}


EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | QK_NORM | EXPERTS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return attention_limits(spec, qk_norm=True) + moe_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `qwen3moe` file: tensors are renamed, their values do not change."""
    moe = moes(model.spec)[0]
    metadata = lowering.common_metadata(NAME, model.spec) | lowering.moe_metadata(NAME, moe)
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        ffn, ffn_part = lift_moe(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, "ffn_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(OUTPUT_BIAS_BY_HEADS,),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
