"""llama.cpp's `command-r`: parallel layers with one layer norm, without biases, RoPE in interleaved pairs
(`src/models/command-r.cpp`).

The output projection is the embedding, and the logits are multiplied by `logit_scale`. Norms of q and k, which the graph has for
each head in models of 64 layers and more, are not taken.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import Metadata, f32, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_INTERLEAVED,
    PARALLEL,
    PARTIAL_ROPE,
    ROPE_SCALING,
    attention_limits,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "command-r"
NORMED_FROM = 64
"""The number of layers from which on the graph has norms of q and k."""
NAMES = {"mixer_norm": "attn_norm.weight", **names.ATTENTION_NAMES, **names.FFN_NAMES}

GRAPH = (
    (DECODER - {"ModelSpec.tied=false", "LayerSpec.ffn_norm=Norm"})
    | ATTENTION
    | PAIRS_INTERLEAVED
    | PARTIAL_ROPE
    | ROPE_SCALING
    | DENSE
    | PARALLEL
    | {"Norm.centred", "Norm.weighted", "LayerSpec.ffn_norm=None", "ModelSpec.logit_scale"}
)
"""What `command-r` and `cohere2` have in common."""


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [f"a model of {NORMED_FROM} layers or more"] if len(spec.layers) >= NORMED_FROM else []
    return found + graph_limits(spec)


def graph_limits(spec: ModelSpec) -> list[str]:
    """The limits that `command-r` and `cohere2` have in common."""
    found = (
        [] if all(layer.parallel for layer in spec.layers) else ["layers whose feed-forward reads the mixer's output"]
    )
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def form(layer: LayerSpec) -> LayerSpec:
    """The layer with the weights of its norm, as the graph has it."""
    return replace(layer, mixer_norm=lowering.full_norm(layer.mixer_norm, bias=False))


def lower_as(name: str, model: Model, extra: Metadata) -> Lowered:
    """The model as a file of `name`, `command-r` or `cohere2`, with further keys."""
    full = lowering.completed(model, form, output_norm=lowering.full_norm(model.spec.output_norm, bias=False))
    metadata = lowering.common_metadata(name, full.spec) | {
        f"{name}.feed_forward_length": u32(lowering.ffn_width(full.spec)),
        f"{name}.logit_scale": f32(full.spec.logit_scale),
    }
    tensors = lowering.lower_tensors(full, lambda layer: names.rename(layer.tensors, NAMES))
    return Lowered(name, metadata | extra, tensors)


def lift_layer(source: GGUFSource, n: int) -> Layer:
    """Layer n of a file without its norm."""
    mixer, part = lifting.lift_attention(source, n, Norm(0.0))
    rope = replace(lifting.lift_rope(source, mixer.head_dim), pairs="interleaved")
    ffn, ffn_part = lifting.lift_mlp(source, n)
    return Layer(LayerSpec(replace(mixer, rope=rope), ffn, None, None, parallel=True), part | ffn_part)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model; a logit scale of 0 or none is 1."""
    scale = source.number("logit_scale", 0.0) or 1.0
    return lifting.lift_normed(source, lambda n: lift_layer(source, n), centred=True, logit_scale=scale)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, INTERLEAVED_PAIRS),
    expresses=GRAPH,
    limits=limits,
    lower=lambda model: lower_as(NAME, model, {}),
    lift=lift,
)
