"""llama.cpp's `llama`: Llama, Mistral, Mixtral (`src/models/llama.cpp`).

RoPE is interleaved (GPT-J), with one divisor per frequency if `rope_freqs.weight` exists; every projection may have a bias;
either all layers are MoE (softmax router, renormalised) or none is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.header import Metadata, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import FactorScaling, LinearScaling, Llama3Scaling, Rope, YarnScaling, frequencies
from gguf_tools.model.spec import (
    Attention,
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Model,
    ModelSpec,
    Norm,
)
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES, UNGATED
from gguf_tools.rewrites.approximations import UNCAPPED
from gguf_tools.rewrites.norms import LAYER_NORM_REWRITES
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS, WHOLE_ROPE
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, OutputTensor, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.targets.limits import (
    ATTENTION,
    BIAS_ON_OUTPUT,
    DECODER,
    DENSE,
    DENSE_BIAS,
    EXPERTS,
    PAIRS_INTERLEAVED,
    ROPE_FACTORS,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    moe_limits,
    moes,
    norm_limits,
    ropes,
)
from gguf_tools.tensors.base import InMemory, Tensor

NAME = "llama"
FREQUENCY_FACTORS = "rope_freqs.weight"
NAMES = {
    "mixer_norm": "attn_norm.weight",
    **names.ATTENTION_NAMES,
    "ffn_norm": "ffn_norm.weight",
    **names.FFN_NAMES,
    **names.FFN_BIAS_NAMES,
    **names.MOE_NAMES,
}


EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_INTERLEAVED
    | ROPE_SCALING
    | ROPE_FACTORS
    | BIAS_ON_OUTPUT
    | DENSE
    | DENSE_BIAS
    | EXPERTS
)


REWRITES = (*LAYER_NORM_REWRITES, *ACTIVATION_REWRITES, UNGATED, INTERLEAVED_PAIRS, WHOLE_ROPE)


def limits(spec: ModelSpec) -> list[str]:
    """What Llama's graph cannot express of the values of its features."""
    found = []
    if len({isinstance(layer.feed_forward, GatedMLP) for layer in spec.layers}) > 1:
        found.append("dense layers among MoE layers")
    return found + attention_limits(spec) + mlp_limits(spec) + moe_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `llama` file: tensors are renamed, their values do not change."""
    return lower_as(NAME, model, {})


def renamed(layer: Layer) -> Mapping[str, Tensor]:
    """Llama's tensors of a layer by GGUF name without `blk.N.`."""
    return names.rename(layer.tensors, NAMES)


def _nothing(_: LayerSpec) -> Mapping[str, Tensor]:
    return {}


def lower_as(
    arch: str,
    model: Model,
    metadata: Metadata,
    extra: Callable[[LayerSpec], Mapping[str, Tensor]] = _nothing,
    named: Callable[[Layer], Mapping[str, Tensor]] = renamed,
) -> Lowered:
    """The model as a file of `arch`, an architecture with Llama's tensors.

    `metadata` is added to the common keys; `named` gives the tensors of a layer by GGUF name without `blk.N.`, and `extra`
    further ones.
    """
    spec = model.spec
    # llama.cpp reads the width of experts from the key of the dense feed-forward.
    metadata = (
        lowering.common_metadata(arch, spec) | {f"{arch}.feed_forward_length": u32(lowering.ffn_width(spec))} | metadata
    )
    if experts := moes(spec):
        metadata |= lowering.moe_metadata(arch, experts[0])

    tensors = lowering.lower_tensors(model, lambda layer: {**named(layer), **extra(layer.spec)})
    factors = rope_factors(ropes(spec)[0]) if ropes(spec) else None
    if factors:
        tensors = (tensors[0], OutputTensor(FREQUENCY_FACTORS, factors), *tensors[1:])
    return Lowered(arch, metadata, tensors)


def rope_factors(rope: Rope) -> Tensor | None:
    """Divisors of the frequencies, shape (dims / 2,), for scalings that llama.cpp has no key for; else None."""
    if not isinstance(rope.scaling, Llama3Scaling | FactorScaling):
        return None
    base, _ = frequencies(replace(rope, scaling=None))
    return InMemory((base / frequencies(rope)[0]).astype(np.float32))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    return lift_with(source, lambda n, mixer: mixer)


def lift_with(
    source: GGUFSource,
    change: Callable[[int, Attention], Attention],
    more: Callable[[int], LayerTensors] = lambda n: {},
) -> Model:
    """A file with Llama's tensors as a Model.

    `change` maps (layer number, attention) to the final attention spec, and `more` gives a layer's tensors beyond Llama's, by
    role.
    """

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        mixer = replace(mixer, rope=lift_rope(source, mixer.head_dim))
        ffn: FeedForward
        if f"blk.{n}.ffn_gate_inp.weight" in source.tensors:
            ffn, ffn_part = lift_moe(source, n)
        else:
            ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(change(n, mixer), ffn, norm, norm), part | ffn_part | more(n))

    return lift_layers(source, layer, "ffn_norm.weight")


def lift_rope(source: GGUFSource, head_dim: int) -> Rope:
    """The file's RoPE in interleaved pairs, with its divisors of frequencies."""
    return lift_factors(source, replace(lifting.lift_rope(source, head_dim), pairs="interleaved"))


def lift_factors(source: GGUFSource, rope: Rope) -> Rope:
    """The rope with the divisors of its frequencies that the file has, if any; UnsupportedError for YaRN beside them."""
    if FREQUENCY_FACTORS not in source.tensors:
        return rope
    if isinstance(rope.scaling, YarnScaling):
        raise UnsupportedError(
            f"{source.path}: has both YaRN and {FREQUENCY_FACTORS}, which tinyq does not support together"
        )
    factor = rope.scaling.factor if isinstance(rope.scaling, LinearScaling) else 1.0
    found = source.tensors[FREQUENCY_FACTORS]
    if found.shape != (rope.dims // 2,):
        raise CheckpointError(
            f"{source.path}: tensor {FREQUENCY_FACTORS} has shape {found.shape}; expected {(rope.dims // 2,)}, one factor "
            "for each pair; write the file again"
        )
    values = found.array().astype(np.float64) * factor
    return replace(rope, scaling=FactorScaling(tuple(values.tolist())))


TARGET = Target(
    name=NAME,
    rewrites=REWRITES,
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    approximations=(UNCAPPED,),
)
