"""llama.cpp's `bloom`: a layer norm of the embeddings, ALiBi, GELUs without a gate, biases everywhere (`src/models/bloom.cpp`).

ALiBi's bias is 8, a constant of the loader. q, k and v are one matrix.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import RELU_AS_GELU
from gguf_tools.targets import gpt2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION_WITHOUT_ROPE,
    BIAS_ON_OUTPUT,
    DECODER,
    GELU_MLP,
    GELU_NMSE,
    GELU_WHY,
    LAYER_NORMS,
    attention_limits,
    attentions,
    layer_norm_limits,
    mlp_limits,
    square_limits,
)

NAME = "bloom"
BIAS = 8.0

EXPRESSES = (
    DECODER
    | ATTENTION_WITHOUT_ROPE
    | BIAS_ON_OUTPUT
    | GELU_MLP
    | LAYER_NORMS
    | {"Attention.alibi", "ModelSpec.embedding_norm=Norm"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [] if spec.embedding_norm else ["a model without a norm of the embeddings"]
    if any(mixer.alibi != BIAS for mixer in attentions(spec)):
        found.append(f"attention without ALiBi of a bias of {BIAS:g}")
    return found + attention_limits(spec) + square_limits(spec) + mlp_limits(spec) + layer_norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `bloom` file: tensors are renamed and joined, and biases that it lacks are zeros."""
    norms = {name: lowering.full_norm(getattr(model.spec, name)) for name in ("embedding_norm", "output_norm")}
    full = lowering.completed(model, gpt2.form, **norms)
    metadata = lowering.common_metadata(NAME, full.spec)
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(full.spec))
    written = lowering.lower_tensors(full, lambda layer: names.rename(lowering.joined_qkv(layer.tensors), gpt2.NAMES))
    return Lowered(NAME, metadata, written)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        mixer = replace(mixer, rope=None, alibi=BIAS, bias=frozenset("qkvo"))
        ffn, ffn_part = lifting.lift_ungated(source, n, "gelu_tanh")
        return Layer(LayerSpec(mixer, ffn, None, None), part | lifting.lift_qkv(source, n, mixer) | ffn_part)

    embedded = Norm(source.number("attention.layer_norm_epsilon"), centred=True, bias=True)
    return lifting.lift_normed(source, layer, centred=True, embedding_norm=embedded)


TARGET = Target(
    name=NAME,
    rewrites=(RELU_AS_GELU,),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
