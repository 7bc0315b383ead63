"""llama.cpp's `granitehybrid`: Granite's graph with Mamba-2 in some layers and attention in the others
(`src/models/granite-hybrid.cpp`).

`attention.head_count_kv` is an array, 0 for the layers with a state space, which is twice as wide as the residual stream. Rope
is in all attention layers or in none; all layers have experts, and perhaps an ungated shared one, or none has. The graph's
memory has a part for each mixer type, and an assertion fails for one without layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gguf_tools.formats.gguf.header import ValueType, array
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, FeedForward, Layer, LayerSpec, Mixer, Model, ModelSpec, Norm
from gguf_tools.targets import granite, lifting, llama, lowering, mamba2, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import NO_SHARED_GATE, SHARED_EXPERT, STATE_SPACE, attentions, moes, same
from gguf_tools.tensors.base import Tensor

NAME = "granitehybrid"
NAMES = {**llama.NAMES, **mamba2.SSM_NAMES}

EXPRESSES = granite.EXPRESSES | SHARED_EXPERT | NO_SHARED_GATE | STATE_SPACE | {"LayerSpec.mixer=Mamba2"}


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    spaces = mamba2.state_spaces(spec)
    found = [] if spaces else ["a model without state space layers"]
    found += [] if attentions(spec) else ["a model without full attention layers"]
    found += [
        f"a state space of {mixer.inner} channels with a hidden size of {spec.hidden}"
        for mixer in dict.fromkeys(spaces)
        if mixer.inner != 2 * spec.hidden
    ]
    if len({moe.shared is None for moe in moes(spec)}) > 1:
        found.append("layers without a shared expert among layers that have one")
    found += same((moe.shared.width for moe in moes(spec) if moe.shared), "width of the shared expert")
    return found + mamba2.state_space_limits(spec, norm=True) + granite.limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `granitehybrid` file."""
    full = lowering.completed(model, mamba2.with_conv_bias)
    kv_heads = [layer.mixer.kv_heads if isinstance(layer.mixer, Attention) else 0 for layer in full.spec.layers]
    metadata = granite.scale_metadata(NAME, full.spec)
    metadata |= mamba2.state_space_metadata(NAME, mamba2.state_spaces(full.spec)[0])
    metadata[f"{NAME}.attention.head_count_kv"] = array(ValueType.INT32, kv_heads)

    def named(layer: Layer) -> Mapping[str, Tensor]:
        return names.rename(mamba2.join_state_space(layer), NAMES)

    return llama.lower_as(NAME, full, metadata, named=named)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        """Layer n, with a state space if `attention.head_count_kv` is 0 for it."""
        mixer: Mixer
        ffn: FeedForward
        kv_heads = lifting.kv_heads(source, n)
        if kv_heads:
            attention, part = lifting.lift_attention(source, n, norm, kv_heads=kv_heads)
            mixer = granite.lift_scale(source, replace(attention, rope=llama.lift_rope(source, attention.head_dim)))
        else:
            mixer, part = mamba2.lift_state_space(source, n, norm)
        if f"blk.{n}.ffn_gate_inp.weight" in source.tensors:
            ffn, ffn_part = lifting.lift_moe(source, n)
        else:
            ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), {**part, **ffn_part})

    return granite.lift_scales(source, lifting.lift_layers(source, layer, "ffn_norm.weight"))


TARGET = Target(name=NAME, rewrites=llama.REWRITES, expresses=EXPRESSES, limits=limits, lower=lower, lift=lift)
