"""llama.cpp's `apertus`: xIELU without a gate, q/k norm on each head, RoPE in halves on whole heads (`src/models/apertus.cpp`).

xIELU's four numbers of each layer are metadata, `xielu.alpha_p`, `alpha_n`, `beta` and `eps` (without the architecture's prefix),
with a value for each layer. The output projection is required. RoPE has one divisor per frequency if `rope_freqs.weight` exists.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf.header import Field, ValueType, array, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.feed_forward import XIELU
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import lifting, llama, lowering, names
from gguf_tools.targets.base import Lowered, OutputTensor, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    BIAS_ON_OUTPUT,
    DECODER,
    PAIRS_HALF,
    QK_NORM,
    ROPE_FACTORS,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    norm_limits,
    ropes,
)
from gguf_tools.tensors.base import InMemory

NAME = "apertus"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true"})
    | ATTENTION
    | BIAS_ON_OUTPUT
    | PAIRS_HALF
    | ROPE_SCALING
    | ROPE_FACTORS
    | QK_NORM
    | {"LayerSpec.feed_forward=MLP", "MLP.activation=xielu"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return attention_limits(spec, qk_norm=True) + mlp_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as an `apertus` file: tensors are renamed, and the numbers of xIELU become metadata."""
    numbers: dict[str, Field] = {
        f"xielu.{name}": array(
            ValueType.FLOAT32, [float(layer.tensors[f"ffn.{name}"].array()[0]) for layer in model.layers]
        )
        for name in XIELU
    }
    apart = {f"ffn.{name}" for name in XIELU}
    metadata = lowering.common_metadata(NAME, model.spec) | numbers
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(model.spec))
    tensors = lowering.lower_tensors(
        model, lambda layer: names.rename({r: t for r, t in layer.tensors.items() if r not in apart}, NAMES)
    )
    factors = llama.rope_factors(ropes(model.spec)[0])
    if factors:
        tensors = (tensors[0], OutputTensor(llama.FREQUENCY_FACTORS, factors), *tensors[1:])
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model; CheckpointError if a number of xIELU is missing for a layer."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(source.number("attention.layer_norm_rms_epsilon")))
        rope = llama.lift_factors(source, lifting.lift_rope(source, mixer.head_dim))
        ffn, ffn_part = lifting.lift_ungated(source, n, "xielu")
        numbers = {f"ffn.{name}": InMemory(np.array([_number(source, name, n)], np.float32)) for name in XIELU}
        return Layer(LayerSpec(replace(mixer, rope=rope), ffn, None, None), part | ffn_part | numbers)

    return lifting.lift_normed(source, layer)


def _number(source: GGUFSource, name: str, n: int) -> float:
    """Layer n's number of this name: the file has a list with one for each layer, or one for all."""
    listed = source.header.get(f"xielu.{name}")
    value = listed[n] if isinstance(listed, tuple) and n < len(listed) else listed
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"{source.path}: metadata xielu.{name} has no number for layer {n}; write the file again")
    return float(value)


TARGET = Target(
    name=NAME,
    rewrites=(HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
