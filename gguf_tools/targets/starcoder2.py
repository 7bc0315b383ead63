"""llama.cpp's `starcoder2`: layer norms, GELUs without a gate, biases everywhere, RoPE on whole heads in halves
(`src/models/starcoder2.cpp`)."""

from __future__ import annotations

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import RELU_AS_GELU
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets import gpt2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    BIAS_ON_OUTPUT,
    DECODER,
    GELU_MLP,
    GELU_NMSE,
    GELU_WHY,
    LAYER_NORMS,
    PAIRS_HALF,
    ROPE_SCALING,
    attention_limits,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "starcoder2"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.FFN_NAMES, **names.FFN_BIAS_NAMES}

EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | BIAS_ON_OUTPUT | GELU_MLP | LAYER_NORMS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `starcoder2` file: tensors are renamed, and biases that it lacks are zeros."""
    full = lowering.completed(model, gpt2.form, output_norm=lowering.full_norm(model.spec.output_norm))
    return lowering.lower_renamed(NAME, full, NAMES)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        ffn, ffn_part = lifting.lift_ungated(source, n, "gelu_tanh")
        return Layer(LayerSpec(mixer, ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer, centred=True)


TARGET = Target(
    name=NAME,
    rewrites=(RELU_AS_GELU, HALF_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
