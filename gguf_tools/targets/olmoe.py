"""llama.cpp's `olmoe`: one norm of q and of k over all heads, experts in every layer without renormalisation
(`src/models/olmoe.cpp`).

Key heads are as many as query heads, and the output projection is required.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    EXPERTS,
    PAIRS_HALF,
    QK_NORM,
    ROPE_SCALING,
    WHOLE_NORM,
    attention_limits,
    attentions,
    moe_limits,
    moes,
    norm_limits,
    square_limits,
)

NAME = "olmoe"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.MOE_NAMES}

EXPRESSES = (DECODER - {"ModelSpec.tied=true"}) | ATTENTION | PAIRS_HALF | ROPE_SCALING | QK_NORM | WHOLE_NORM | EXPERTS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    mixers = attentions(spec)
    found = [] if all(mixer.norm_whole for mixer in mixers) else ["attention without one q/k norm over all heads"]
    if any(mixer.heads != mixer.kv_heads for mixer in mixers):
        found.append("fewer key heads than query heads")
    found += attention_limits(spec, qk_norm=True) + square_limits(spec)
    return found + moe_limits(spec, normalised=False) + norm_limits(spec)


def lower(model: Model) -> Lowered:
    """The model as an `olmoe` file: tensors are renamed, their values do not change."""
    moe = moes(model.spec)[0]
    metadata = lowering.common_metadata(NAME, model.spec) | lowering.moe_metadata(NAME, moe)
    metadata[f"{NAME}.feed_forward_length"] = u32(moe.width)
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    norm = Norm(source.number("attention.layer_norm_rms_epsilon"))

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        ffn, ffn_part = lifting.lift_moe(source, n, normalised=False)
        return Layer(LayerSpec(replace(mixer, norm_whole=True), ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer)


TARGET = Target(
    name=NAME,
    rewrites=(HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
