"""llama.cpp's `qwen3moe`: like qwen3, with experts in every layer, softmax, renormalised (`src/models/qwen3moe.cpp`)."""

from __future__ import annotations

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lacks import (
    attention_lacks,
    dense_lacks,
    linear_lacks,
    moe_lacks,
    moes,
    norm_lacks,
    scale_lacks,
)
from gguf_tools.targets.lifting import lift_layers, lift_moe

NAME = "qwen3moe"
NAMES = {"mixer_norm": "attn_norm.weight", **names.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **names.MOE_NAMES}


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = linear_lacks(spec) + dense_lacks(spec)
    if any(moe.shared for moe in moes(spec)):
        found.append("a shared expert")
    found += attention_lacks(spec, gated=False, full_rope=True)
    return found + moe_lacks(spec) + norm_lacks(spec) + scale_lacks(spec)


def lower(model: Model) -> Lowered:
    """Every tensor keeps its numbers; only names change."""
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
    name=NAME, rewrites=(OUTPUT_BIAS_BY_HEADS,), lacks=lacks, lower=lower, lift=lift, native=frozenset({"qwen3-moe"})
)
