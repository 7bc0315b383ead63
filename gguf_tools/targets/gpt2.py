"""llama.cpp's `gpt2`: layer norms, learned positions, no rope, GELUs without a gate, biases everywhere
(`src/models/gpt2.cpp`).

The table of positions has as many rows as the context is long. q, k and v are one matrix.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import MLP, Attention, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import RELU_AS_GELU
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION_WITHOUT_ROPE,
    BIAS_ON_OUTPUT,
    DECODER,
    GELU_MLP,
    GELU_NMSE,
    GELU_WHY,
    LAYER_NORMS,
    POSITIONS,
    attention_limits,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "gpt2"
NAMES = {
    **{role: name for role, name in names.NORM_NAMES.items() if "post" not in role},
    "attn.qkv": "attn_qkv.weight",
    "attn.qkv_bias": "attn_qkv.bias",
    "attn.o": "attn_output.weight",
    "attn.o_bias": "attn_output.bias",
    "ffn.up": "ffn_up.weight",
    "ffn.up_bias": "ffn_up.bias",
    "ffn.down": "ffn_down.weight",
    "ffn.down_bias": "ffn_down.bias",
}

EXPRESSES = DECODER | ATTENTION_WITHOUT_ROPE | BIAS_ON_OUTPUT | GELU_MLP | LAYER_NORMS | POSITIONS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = []
    if spec.positions < spec.context_length:
        found.append(
            f"a context of {spec.context_length} with {spec.positions} learned positions"
            if spec.positions
            else "a model without learned positions"
        )
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def form(layer: LayerSpec) -> LayerSpec:
    """The layer with all biases, as the graph has it."""
    mixer, ffn = layer.mixer, layer.feed_forward
    assert isinstance(mixer, Attention)
    assert isinstance(ffn, MLP)
    return replace(
        layer,
        mixer=replace(mixer, bias=frozenset("qkvo")),
        feed_forward=replace(ffn, bias=frozenset({"up", "down"})),
        mixer_norm=lowering.full_norm(layer.mixer_norm),
        ffn_norm=lowering.full_norm(layer.ffn_norm),
    )


def lower(model: Model) -> Lowered:
    """The model as a `gpt2` file: tensors are renamed and joined, and biases that it lacks are zeros."""
    full = lowering.completed(model, form, output_norm=lowering.full_norm(model.spec.output_norm))
    spec = full.spec
    metadata = lowering.common_metadata(NAME, spec) | {
        f"{NAME}.context_length": u32(spec.positions),
        f"{NAME}.feed_forward_length": u32(lowering.ffn_width(spec)),
    }
    tensors = lowering.lower_tensors(full, lambda layer: names.rename(lowering.joined_qkv(layer.tensors), NAMES))
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0), with_rope=False)
        mixer = replace(mixer, bias=frozenset("qkvo"))
        ffn, ffn_part = lifting.lift_ungated(source, n, "gelu_tanh")
        return Layer(LayerSpec(mixer, ffn, None, None), part | lifting.lift_qkv(source, n, mixer) | ffn_part)

    return lifting.lift_normed(source, layer, centred=True)


TARGET = Target(
    name=NAME,
    rewrites=(RELU_AS_GELU,),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
