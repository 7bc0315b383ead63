"""llama.cpp's `qwen2`: dense, biases on queries, keys and values where the file has them (`src/models/qwen2.cpp`)."""

from __future__ import annotations

from gguf_tools.gguf_file import u32
from gguf_tools.gguf_source import GGUFSource
from gguf_tools.spec import LayerSpec, Model, ModelSpec, Norm
from gguf_tools.targets import common
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers
from gguf_tools.tensors import Tensor

NAME = "qwen2"
NAMES = {"mixer_norm": "attn_norm.weight", **common.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **common.FFN_NAMES}


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = []
    if any(layer.letter.upper() != "A" for layer in spec.layers):
        found.append("linear attention layers")
    if common.moes(spec):
        found.append("experts")
    found += attention_lacks(spec) + common.mlp_lacks(spec)
    return found + common.norm_lacks(spec) + common.scale_lacks(spec)


def attention_lacks(spec: ModelSpec) -> list[str]:
    """Qwen2's attention, dense or with experts: no q/k norm, and heads that together are as wide as the model."""
    found = common.attention_lacks(spec, gated=False, full_rope=True, qk_norm=False)
    for mixer in dict.fromkeys(common.attentions(spec)):
        if mixer.heads * mixer.head_dim != spec.hidden:
            found.append(f"{mixer.heads} heads of {mixer.head_dim} in a model {spec.hidden} wide")
    return found


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


TARGET = Target(NAME, (), lacks, lower, lift, frozenset({"qwen2"}))
