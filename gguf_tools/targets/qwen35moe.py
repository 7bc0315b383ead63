"""llama.cpp's `qwen35moe`: like qwen35, with MoE and a gated shared expert in every layer (`src/models/qwen35moe.cpp`)."""

from __future__ import annotations

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.gates import EMPTY_SHARED_EXPERT, ZERO_SHARED_GATE
from gguf_tools.targets import hybrid, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.targets.limits import EXPERTS, SHARED_EXPERT, SHARED_GATE, moes, same
from gguf_tools.targets.qwen3next import experts_limits
from gguf_tools.targets.qwen35 import MIXER_NAMES, lift_mixer, lower_layers, metadata_of

NAME = "qwen35moe"
NAMES = MIXER_NAMES | names.MOE_NAMES


EXPRESSES = hybrid.EXPRESSES | EXPERTS | SHARED_EXPERT | SHARED_GATE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    shared = (moe.shared.width for moe in moes(spec) if moe.shared)
    return experts_limits(spec) + same(shared, "the width of the shared expert") + hybrid.hybrid_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `qwen35moe` file."""
    metadata = metadata_of(NAME, model.spec) | lowering.moe_metadata(NAME, moes(model.spec)[0])
    return Lowered(NAME, metadata, lower_layers(model, NAMES))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lift_mixer(source, n, norm)
        ffn, ffn_part = lift_moe(source, n)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, hybrid.POST_NORM)


TARGET = Target(
    name=NAME,
    rewrites=(*hybrid.REWRITES, EMPTY_SHARED_EXPERT, ZERO_SHARED_GATE),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
