"""llama.cpp's `phi2`: parallel layers with one layer norm, GELUs without a gate, RoPE on a part of each head in halves, a bias on
the logits (`src/models/phi2.cpp`).

All biases are required (zeros change nothing), and so is the output projection.
"""

from __future__ import annotations

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import RELU_AS_GELU
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
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
    OUTPUT_BIAS,
    PAIRS_HALF,
    PARALLEL,
    PARTIAL_ROPE,
    ROPE_SCALING,
    attention_limits,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "phi2"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.FFN_NAMES, **names.FFN_BIAS_NAMES}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true", "LayerSpec.ffn_norm=Norm"})
    | ATTENTION
    | BIAS_ON_OUTPUT
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | GELU_MLP
    | LAYER_NORMS
    | PARALLEL
    | OUTPUT_BIAS
    | {"LayerSpec.ffn_norm=None"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = (
        [] if all(layer.parallel for layer in spec.layers) else ["layers whose feed-forward reads the mixer's output"]
    )
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `phi2` file: tensors are renamed, and biases that it lacks are zeros."""
    norm = lowering.full_norm(model.spec.output_norm)
    full = lowering.completed(model, gpt2.form, output_norm=norm, output_bias=True)
    return lowering.lower_renamed(NAME, full, NAMES)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        ffn, ffn_part = lifting.lift_ungated(source, n, "gelu_tanh")
        return Layer(LayerSpec(mixer, ffn, None, None, parallel=True), part | ffn_part)

    return lifting.lift_normed(source, layer, centred=True)


TARGET = Target(
    name=NAME,
    rewrites=(RELU_AS_GELU, HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
