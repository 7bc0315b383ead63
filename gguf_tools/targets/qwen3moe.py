"""llama.cpp's `qwen3moe`: like qwen3, with experts in every layer, softmax, renormalised (`src/models/qwen3moe.cpp`)."""

from __future__ import annotations

from gguf_tools.gguf_source import GGUFSource
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.spec import LayerSpec, Model, ModelSpec, Norm
from gguf_tools.targets import common
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.tensors import Tensor

NAME = "qwen3moe"
NAMES = {"mixer_norm": "attn_norm.weight", **common.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **common.MOE_NAMES}


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = common.linear_lacks(spec) + common.dense_lacks(spec)
    if any(moe.shared for moe in common.moes(spec)):
        found.append("a shared expert")
    found += common.attention_lacks(spec, gated=False, full_rope=True)
    return found + common.moe_lacks(spec) + common.norm_lacks(spec) + common.scale_lacks(spec)


def lower(model: Model) -> Lowered:
    """Every tensor keeps its numbers; only names change."""
    moe = common.moes(model.spec)[0]
    metadata = common.common_metadata(NAME, model.spec) | common.moe_metadata(NAME, moe)
    return Lowered(NAME, metadata, common.lower_tensors(model, lambda _, tensors: common.rename(tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> tuple[LayerSpec, dict[str, Tensor]]:
        mixer, part = common.lift_attention(source, n, norm)
        ffn, ffn_part = lift_moe(source, n)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    return lift_layers(source, layer, "ffn_norm.weight")


TARGET = Target(NAME, (OUTPUT_BIAS_BY_HEADS,), lacks, lower, lift, frozenset({"qwen3-moe"}))
