"""llama.cpp's `stablelm`: layer norms with biases around a gate of SiLUs, RoPE on a part of each head in halves
(`src/models/stablelm.cpp`).

Without a norm before the feed-forward, which all layers then lack, mixer and feed-forward are in parallel and read the same. The
output projection is required. Norms of q and k, which the graph has for each head, are not taken.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
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

NAME = "stablelm"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.FFN_NAMES}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true"})
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | DENSE
    | LAYER_NORMS
    | PARALLEL
    | {"LayerSpec.ffn_norm=None"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = parallel_limits(spec)
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def parallel_limits(spec: ModelSpec) -> list[str]:
    """A layer is parallel exactly where it has no norm before its feed-forward."""
    if any(layer.parallel and layer.ffn_norm for layer in spec.layers):
        return ["a norm of the feed-forward's own in parallel layers"]
    if any(not layer.parallel and not layer.ffn_norm for layer in spec.layers):
        return ["layers without a norm before the feed-forward"]
    return []


def form(layer: LayerSpec) -> LayerSpec:
    """The layer with all weights and biases of its norms, as the graph has it."""
    return replace(layer, mixer_norm=lowering.full_norm(layer.mixer_norm), ffn_norm=lowering.full_norm(layer.ffn_norm))


def lower(model: Model) -> Lowered:
    """The model as a `stablelm` file: tensors are renamed, and biases of norms that it lacks are zeros."""
    full = lowering.completed(model, form, output_norm=lowering.full_norm(model.spec.output_norm))
    return lowering.lower_renamed(NAME, full, NAMES)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model; UnsupportedError for norms of q and k."""
    if "blk.0.attn_q_norm.weight" in source.tensors:
        raise UnsupportedError(
            f"{source.path}: has q/k norms with weights per head, which tinyq does not support for {NAME}"
        )

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        ffn, ffn_part = lifting.lift_mlp(source, n)
        parallel = f"blk.{n}.ffn_norm.weight" not in source.tensors
        return Layer(LayerSpec(mixer, ffn, None, None, parallel=parallel), part | ffn_part)

    return lifting.lift_normed(source, layer, centred=True)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
