"""llama.cpp's `qwen2moe`: qwen2's attention, MoE with a gated shared expert in every layer (`src/models/qwen2moe.cpp`).

The selected experts' weights are not renormalised, and the file must have an output projection.
"""

from __future__ import annotations

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.lifting import lift_layers, lift_moe
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    EXPERTS,
    PAIRS_HALF,
    ROPE_SCALING,
    SHARED_EXPERT,
    SHARED_GATE,
    moe_limits,
    moes,
    norm_limits,
    same,
)
from gguf_tools.targets.qwen2 import heads_limits

NAME = "qwen2moe"
NAMES = {"mixer_norm": "attn_norm.weight", **names.ATTENTION_NAMES, "ffn_norm": "ffn_norm.weight", **names.MOE_NAMES}


EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | EXPERTS | SHARED_EXPERT | SHARED_GATE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = []
    # An added shared expert cannot have a gate of zeros: the graph computes sigmoid(z) as SiLU(z) / z.
    if any(moe.shared is None for moe in moes(spec)):
        found.append("experts without a gated shared expert")
    found += same((moe.shared.width for moe in moes(spec) if moe.shared), "the width of the shared expert")
    if spec.tied:
        found.append("an output projection tied to the embedding")
    return found + heads_limits(spec) + moe_limits(spec, normalised=False) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as a `qwen2moe` file: tensors are renamed, their values do not change.

    Raises UnsupportedError if the gate of a shared expert is all zeros, since the graph then computes 0 / 0.
    """
    for layer in model.layers:
        gate = layer.tensors["shared.sigmoid"]
        if not gate.array().any():
            raise UnsupportedError(
                f"tensor {', '.join(gate.sources)} is all zeros: llama.cpp's {NAME} computes the gate's sigmoid as SiLU(z) / z, "
                "which is NaN for z = 0; train further, or set one of the weights to a small value"
            )
    moe = moes(model.spec)[0]
    metadata = lowering.common_metadata(NAME, model.spec) | lowering.moe_metadata(NAME, moe)
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def layer(n: int, norm: Norm) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        ffn, ffn_part = lift_moe(source, n, normalised=False)
        return Layer(LayerSpec(mixer, ffn, norm, norm), part | ffn_part)

    return lift_layers(source, layer, "ffn_norm.weight")


TARGET = Target(
    name=NAME,
    rewrites=(UNTIED_OUTPUT,),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
