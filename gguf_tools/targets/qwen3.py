"""llama.cpp's `qwen3`: dense, q/k norm per head, rope on the whole head (`src/models/qwen3.cpp`)."""

from __future__ import annotations

from gguf_tools.gguf_file import u32
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.spec import LayerSpec, Model, ModelSpec, Norm
from gguf_tools.targets import common
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers
from gguf_tools.tensors import Tensor

NAME = "qwen3"
NAMES = {"mixer_norm": "attn_norm.weight", **common.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **common.FFN_NAMES}


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = []
    if any(layer.letter.upper() != "A" for layer in spec.layers):
        found.append("linear attention layers")
    if common.moes(spec):
        found.append("experts")
    return (
        found
        + common.mlp_lacks(spec)
        + common.attention_lacks(spec, gated=False, full_rope=True)
        + common.norm_lacks(spec)
        + common.scale_lacks(spec)
    )


def lower(model: Model) -> Lowered:
    """Every tensor keeps its numbers; only names change."""
    width = model.spec.layers[0].feed_forward.width
    metadata = common.common_metadata(NAME, model.spec) | {f"{NAME}.feed_forward_length": u32(width)}
    return Lowered(NAME, metadata, common.lower_tensors(model, lambda _, tensors: common.rename(tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> tuple[LayerSpec, dict[str, Tensor]]:
        mixer, part = common.lift_attention(source, n, norm)
        ffn, ffn_part = common.lift_mlp(source, n)
        return LayerSpec(mixer, ffn, norm, norm), part | ffn_part

    return lift_layers(source, layer, "ffn_norm.weight")


TARGET = Target(NAME, (OUTPUT_BIAS_BY_HEADS,), lacks, lower, lift, frozenset({"qwen3"}))
