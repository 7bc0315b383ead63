"""llama.cpp's `phi2`: parallel layers with one layer norm, GELUs without a gate, biases everywhere, on the logits too
(`src/models/phi2.cpp`).

RoPE turns the first `rope.dimension_count` dimensions in halves. q, k and v are one matrix, and the output projection is
required.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import RELU_AS_GELU
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import gpt2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.command_r import graph_limits
from gguf_tools.targets.limits import (
    ATTENTION,
    BIAS_ON_OUTPUT,
    DECODER,
    GELU_MLP,
    GELU_NMSE,
    GELU_WHY,
    LAYER_NORMS,
    PAIRS_HALF,
    PARALLEL,
    PARTIAL_ROPE,
    ROPE_SCALING,
)

NAME = "phi2"

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true", "LayerSpec.ffn_norm=Norm"})
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | BIAS_ON_OUTPUT
    | GELU_MLP
    | LAYER_NORMS
    | PARALLEL
    | {"LayerSpec.ffn_norm=None", "ModelSpec.output_bias"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return graph_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `phi2` file: tensors are renamed and joined, and biases that it lacks are zeros."""
    norm = lowering.full_norm(model.spec.output_norm) or model.spec.output_norm
    biased = replace(model, spec=replace(model.spec, output_bias=True))
    full = lowering.completed(biased, norm, gpt2.form)
    metadata = lowering.common_metadata(NAME, full.spec) | {
        f"{NAME}.feed_forward_length": u32(lowering.ffn_width(full.spec))
    }
    tensors = lowering.lower_tensors(full, lambda layer: names.rename(lowering.joined_qkv(layer.tensors), gpt2.NAMES))
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        mixer = replace(mixer, bias=frozenset("qkvo"))
        ffn, ffn_part = lifting.lift_ungated(source, n, "gelu_tanh")
        spec = LayerSpec(mixer, ffn, None, None, parallel=True)
        return Layer(spec, part | lifting.lift_qkv(source, n, mixer) | ffn_part)

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
