"""llama.cpp's `qwen3next`: Gated DeltaNet and gated attention in any order, experts and a gated shared expert in every
layer (`src/models/qwen3next.cpp`)."""

from __future__ import annotations

from collections.abc import Mapping

from gguf_tools.formats.gguf.header import ValueType, array
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, DeltaNet, Layer, LayerSpec, LayerTensors, Mixer, Model, ModelSpec, Norm
from gguf_tools.rewrites.delta import DENSE_AS_SHARED
from gguf_tools.rewrites.gates import EMPTY_SHARED_EXPERT, ZERO_SHARED_GATE
from gguf_tools.targets import hybrid, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.targets.limits import EXPERTS, SHARED_EXPERT, SHARED_GATE, moe_limits, moes
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import interleave_rows, take_rows

NAME = "qwen3next"
DELTA_NAMES = {**hybrid.DELTA_NAMES, "delta.ba": "ssm_ba.weight"}
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    **DELTA_NAMES,
    "ffn_norm": hybrid.POST_NORM,
    **names.MOE_NAMES,
}


EXPRESSES = hybrid.EXPRESSES | EXPERTS | SHARED_EXPERT | SHARED_GATE


def experts_limits(spec: ModelSpec) -> list[str]:
    """Limits of an architecture that requires MoE with a gated shared expert in every layer."""
    found = []
    if any(moe.shared is None for moe in moes(spec)):
        found.append("experts without a gated shared expert")
    return found + moe_limits(spec)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return experts_limits(spec) + hybrid.hybrid_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `qwen3next` file.

    Query and gate are interleaved head by head, beta and alpha key head by key head; the decay is stored as a rate.
    """
    spec = model.spec
    metadata = hybrid.hybrid_metadata(NAME, spec) | lowering.moe_metadata(NAME, moes(spec)[0])
    widths = [moe.shared.width for moe in moes(spec) if moe.shared]
    if len(set(widths)) > 1:
        # Without this key the loader uses each layer's feed-forward length as the width of its shared expert.
        del metadata[f"{NAME}.expert_shared_feed_forward_length"]
        metadata[f"{NAME}.feed_forward_length"] = array(ValueType.UINT32, widths)

    def named(layer: Layer) -> dict[str, Tensor]:
        mixer, tensors = layer.spec.mixer, layer.tensors
        if isinstance(mixer, Attention):
            return names.rename(hybrid.join_gate(mixer, tensors), NAMES)
        assert isinstance(mixer, DeltaNet)
        return names.rename(_join_delta(mixer, tensors), NAMES)

    return Lowered(NAME, metadata, lowering.lower_tensors(model, named))


def _join_delta(mixer: DeltaNet, tensors: Mapping[str, Tensor]) -> LayerTensors:
    out = hybrid.join_delta(mixer, tensors)
    out["delta.ba"] = interleave_rows([out.pop("delta.beta"), out.pop("delta.alpha")], mixer.key_heads)
    return out


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        """Layer n without its norms: a DeltaNet layer if it has `ssm_a`, else gated attention."""
        mixer: Mixer
        if f"blk.{n}.ssm_a" in source.tensors:
            mixer, part = hybrid.lift_delta(source, n, norm)
            ba, group = source.tensor(f"blk.{n}.ssm_ba.weight"), mixer.value_heads // mixer.key_heads
            hybrid.expect_rows(source, ba, 2 * mixer.value_heads)
            part["delta.beta"] = take_rows(ba, mixer.key_heads, 0, group)
            part["delta.alpha"] = take_rows(ba, mixer.key_heads, group, group)
        else:
            mixer, part = hybrid.lift_gated_attention(source, n, norm)
        ffn, ffn_part = lift_moe(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, hybrid.POST_NORM)


TARGET = Target(
    name=NAME,
    rewrites=(*hybrid.REWRITES, DENSE_AS_SHARED, EMPTY_SHARED_EXPERT, ZERO_SHARED_GATE),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
