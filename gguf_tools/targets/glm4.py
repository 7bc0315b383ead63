"""llama.cpp's `glm4`: norms before and after mixer and feed-forward, RoPE on a part of each head in interleaved pairs, gate and
up projection in one matrix (`src/models/glm4.cpp`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import GatedMLP, Layer, LayerSpec, Model, ModelSpec, Norm
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
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import concatenate, take

NAME = "glm4"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, "ffn.up": "ffn_up.weight", "ffn.down": "ffn_down.weight"}

EXPRESSES = DECODER | ATTENTION | PAIRS_INTERLEAVED | PARTIAL_ROPE | ROPE_SCALING | DENSE | POST_NORMS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return gemma2.post_norm_limits(spec) + attention_limits(spec) + norm_limits(spec)


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's tensors with the rows of gate and then of up as one matrix."""
    out = {role: tensor for role, tensor in tensors.items() if role != "ffn.gate"}
    return {**out, "ffn.up": concatenate([tensors["ffn.gate"], tensors["ffn.up"]])}


def lower(model: Model) -> Lowered:
    """The model as a `glm4` file: tensors are renamed, and gate and up are joined."""
    metadata = lowering.common_metadata(NAME, model.spec)
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(model.spec))
    tensors = lowering.lower_tensors(model, lambda layer: names.rename(_joined(layer.tensors), NAMES))
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        rope = replace(lifting.lift_rope(source, mixer.head_dim), pairs="interleaved")
        both = source.tensor(f"blk.{n}.ffn_up.weight")
        width = both.shape[0] // 2
        part |= {"ffn.gate": take(both, range(width)), "ffn.up": take(both, range(width, 2 * width))}
        part["ffn.down"] = source.tensor(f"blk.{n}.ffn_down.weight")
        return Layer(LayerSpec(replace(mixer, rope=rope), GatedMLP(width), None, None), part)

    return lifting.lift_normed(source, layer)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, INTERLEAVED_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
