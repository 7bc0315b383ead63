"""llama.cpp's `gptneox`: layer norms, GELUs without a gate, biases everywhere, mixer and feed-forward in turn or in parallel
(`src/models/gptneox.cpp`).

RoPE turns the first `rope.dimension_count` dimensions in halves. q, k and v are one matrix, and the output projection is
required. The parallel layers have a norm of each half.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import boolean, u32
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
    PAIRS_HALF,
    PARALLEL,
    PARTIAL_ROPE,
    ROPE_SCALING,
    attention_limits,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "gptneox"

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true"})
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | BIAS_ON_OUTPUT
    | GELU_MLP
    | LAYER_NORMS
    | PARALLEL
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [] if len({layer.parallel for layer in spec.layers}) == 1 else ["parallel layers among others"]
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `gptneox` file: tensors are renamed and joined, and biases that it lacks are zeros."""
    full = lowering.completed(model, gpt2.form, output_norm=lowering.full_norm(model.spec.output_norm))
    spec = full.spec
    metadata = lowering.common_metadata(NAME, spec) | {
        f"{NAME}.feed_forward_length": u32(lowering.ffn_width(spec)),
        f"{NAME}.use_parallel_residual": boolean(spec.layers[0].parallel),
    }
    tensors = lowering.lower_tensors(full, lambda layer: names.rename(lowering.joined_qkv(layer.tensors), gpt2.NAMES))
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    parallel = bool(source.key("use_parallel_residual"))

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        mixer = replace(mixer, bias=frozenset("qkvo"))
        ffn, ffn_part = lifting.lift_ungated(source, n, "gelu_tanh")
        spec = LayerSpec(mixer, ffn, None, None, parallel=parallel)
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
