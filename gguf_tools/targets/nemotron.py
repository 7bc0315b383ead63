"""llama.cpp's `nemotron`: layer norms with biases, squared ReLUs without a gate, RoPE on a part of each head in halves
(`src/models/nemotron.cpp`).

All norms have biases (zeros change nothing), the projections may. The output projection is required.
"""

from __future__ import annotations

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import lifting, lowering, names, stablelm
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    BIAS_ON_OUTPUT,
    DECODER,
    LAYER_NORMS,
    PAIRS_HALF,
    PARTIAL_ROPE,
    ROPE_SCALING,
    attention_limits,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "nemotron"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.FFN_NAMES, **names.FFN_BIAS_NAMES}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true"})
    | ATTENTION
    | BIAS_ON_OUTPUT
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | LAYER_NORMS
    | {"LayerSpec.feed_forward=MLP", "MLP.activation=relu2", "MLP.bias=up", "MLP.bias=down"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `nemotron` file: tensors are renamed, and biases of norms that it lacks are zeros."""
    full = lowering.completed(model, stablelm.form, output_norm=lowering.full_norm(model.spec.output_norm))
    return lowering.lower_renamed(NAME, full, NAMES)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        ffn, ffn_part = lifting.lift_ungated(source, n, "relu2")
        return Layer(LayerSpec(mixer, ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer, centred=True)


TARGET = Target(
    name=NAME,
    rewrites=(HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
