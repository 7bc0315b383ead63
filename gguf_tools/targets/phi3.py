"""llama.cpp's `phi3`: gate and up projection in one matrix, RoPE in halves on a part of each head, with LongRoPE
(`src/models/phi3.cpp`).

LongRoPE's factors are the tensors `rope_factors_short` and `rope_factors_long`; the graph takes the latter if the context that
llama.cpp runs with is longer than `rope.scaling.original_context_length`. Sliding windows are turned off by the loader.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.header import f32, string, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import LongRopeScaling, Rope
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, OutputTensor, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_HALF,
    PARTIAL_ROPE,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    norm_limits,
    ropes,
    square_limits,
)
from gguf_tools.tensors.base import InMemory

NAME = "phi3"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}

EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_HALF
    | PARTIAL_ROPE
    | ROPE_SCALING
    | DENSE
    | {"Rope.scaling=LongRopeScaling", "LongRopeScaling.attention_factor"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `phi3` file: tensors are renamed, and gate and up are joined."""
    metadata = lowering.common_metadata(NAME, model.spec)
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(model.spec))
    tensors = lowering.lower_tensors(model, lambda layer: names.rename(lowering.joined_gate(layer.tensors), NAMES))
    scaling = ropes(model.spec)[0].scaling
    if isinstance(scaling, LongRopeScaling):
        metadata |= {
            f"{NAME}.rope.scaling.type": string("longrope"),
            f"{NAME}.rope.scaling.original_context_length": u32(scaling.original_context),
            f"{NAME}.rope.scaling.attn_factor": f32(scaling.attention_factor),
        }
        factors = {LONG: scaling.long, SHORT: scaling.short}
        added = [OutputTensor(name, InMemory(np.asarray(values, np.float32))) for name, values in factors.items()]
        tensors = (tensors[0], *added, *tensors[1:])
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        rope = _lift_factors(source, lifting.lift_rope(source, mixer.head_dim))
        ffn, ffn_part = lifting.lift_joined_gate(source, n)
        return Layer(LayerSpec(replace(mixer, rope=rope), ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer)


def _lift_factors(source: GGUFSource, rope: Rope) -> Rope:
    """The rope with the file's two sets of factors, if it has them."""
    if SHORT not in source.tensors:
        return rope
    if rope.scaling is not None:
        raise UnsupportedError(
            f"{source.path}: has both rope.scaling.factor and {SHORT}, which tinyq does not support together"
        )
    sets = {name: source.tensor(name).array().astype(np.float64) for name in (SHORT, LONG)}
    for name, values in sets.items():
        if values.shape != (rope.dims // 2,):
            raise CheckpointError(
                f"{source.path}: tensor {name} has shape {values.shape}; expected {(rope.dims // 2,)}, one factor for each pair"
            )
    scaling = LongRopeScaling(
        short=tuple(sets[SHORT].tolist()),
        long=tuple(sets[LONG].tolist()),
        original_context=source.integer("rope.scaling.original_context_length", source.integer("context_length")),
        attention_factor=source.number("rope.scaling.attn_factor", 1.0),
    )
    return replace(rope, scaling=scaling)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, HALF_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
