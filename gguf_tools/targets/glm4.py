"""llama.cpp's `glm4`: norms before and after mixer and feed-forward, RoPE on a part of each head in interleaved pairs, gate and
up projection in one matrix (`src/models/glm4.cpp`)."""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS
from gguf_tools.targets import gemma2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_INTERLEAVED,
    PARTIAL_ROPE,
    POST_NORMS,
    ROPE_SCALING,
    attention_limits,
    norm_limits,
)

NAME = "glm4"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}

EXPRESSES = DECODER | ATTENTION | PAIRS_INTERLEAVED | PARTIAL_ROPE | ROPE_SCALING | DENSE | POST_NORMS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return gemma2.post_norm_limits(spec) + attention_limits(spec) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `glm4` file: tensors are renamed, and gate and up are joined."""
    metadata = lowering.common_metadata(NAME, model.spec)
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(model.spec))
    tensors = lowering.lower_tensors(model, lambda layer: names.rename(lowering.joined_gate(layer.tensors), NAMES))
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        rope = replace(lifting.lift_rope(source, mixer.head_dim), pairs="interleaved")
        ffn, ffn_part = lifting.lift_joined_gate(source, n)
        return Layer(LayerSpec(replace(mixer, rope=rope), ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, INTERLEAVED_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
