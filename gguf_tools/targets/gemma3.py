"""llama.cpp's `gemma3`: `gemma2` with norms of q and k, without a cap on attention scores, and with another RoPE in layers with a
window (`src/models/gemma3.cpp`).

The cap on the logits is optional, and so is an output projection of its own. Layers with a window have RoPE without scaling and
with a base of their own. The attention scale is 1/√head_dim, but 1/√(hidden / heads) in models of 62 layers.
"""

from __future__ import annotations

import math
from dataclasses import replace

from gguf_tools.formats.gguf.header import f32, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import GEGLU_REWRITES
from gguf_tools.rewrites.norms import CENTRED_STREAM
from gguf_tools.rewrites.output_bias import output_bias_at
from gguf_tools.rewrites.post_norms import LEVEL, POST_NORM_IDENTITY
from gguf_tools.rewrites.residual import EMBEDDING_ROOT
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import with_score_scale
from gguf_tools.targets import gemma2, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.gemma import lift_geglu, scale_limits
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    EMBEDDING_SCALE,
    GEGLU,
    GELU_NMSE,
    GELU_WHY,
    LOGIT_SOFTCAP,
    PAIRS_HALF,
    POST_NORMS,
    QK_NORM,
    ROPE_SCALING,
    WINDOWS,
    attention_limits,
    attentions,
    norm_limits,
    same,
)

NAME = "gemma3"
LARGE = 62

EXPRESSES = (
    DECODER
    | ATTENTION
    | PAIRS_HALF
    | ROPE_SCALING
    | QK_NORM
    | GEGLU
    | EMBEDDING_SCALE
    | POST_NORMS
    | LOGIT_SOFTCAP
    | WINDOWS
    | {"Attention.scale"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = gemma2.post_norm_limits(spec) + gemma2.window_limits(spec) + scale_limits(spec) + norm_limits(spec)
    return found + local_limits(spec, qk_norm=True)


def local_limits(spec: ModelSpec, *, qk_norm: bool) -> list[str]:
    """The attention limits, with a RoPE of their own, without scaling, for the layers with a window."""
    mixers = attentions(spec)
    local = [mixer.rope for mixer in mixers if mixer.window and mixer.rope]
    found = same(local, "rope in layers with a window")
    if any(rope.scaling for rope in local):
        found.append("rope scaling in layers with a window")
    rope = next((mixer.rope for mixer in mixers if not mixer.window), local[0] if local else None)
    alike = tuple(
        replace(layer, mixer=replace(layer.mixer, rope=rope))
        if isinstance(layer.mixer, Attention) and layer.mixer.window
        else layer
        for layer in spec.layers
    )
    return found + attention_limits(replace(spec, layers=alike), qk_norm=qk_norm)


def global_rope(spec: ModelSpec) -> Rope:
    """The RoPE of the layers without a window, or where all have one, theirs."""
    mixers = attentions(spec)
    rope = next((mixer.rope for mixer in mixers if not mixer.window), mixers[0].rope)
    assert rope
    return rope


def lower(model: Model) -> Lowered:
    """The model as a `gemma3` file: queries are scaled where the graph's scale is another, and tensors are renamed."""
    spec = model.spec
    scaled = with_score_scale(model, lambda mixer: gemma2.graph_scale(spec, mixer, LARGE))
    local = next((mixer.rope for mixer in attentions(spec) if mixer.window), None)
    metadata = lowering.common_metadata(NAME, spec)
    metadata |= {f"{NAME}.{key}": value for key, value in lowering.rope_metadata(global_rope(spec)).items()}
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(spec))
    if local:
        metadata |= gemma2.window_metadata(NAME, spec) | {f"{NAME}.rope.freq_base_swa": f32(local.theta)}
    if spec.logit_softcap:
        metadata[f"{NAME}.final_logit_softcapping"] = f32(spec.logit_softcap)
    tensors = lowering.lower_tensors(scaled, lambda layer: names.rename(layer.tensors, gemma2.NAMES))
    return Lowered(NAME, metadata, tensors)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    hidden, count = source.integer("embedding_length"), source.integer("block_count")
    windowed = source.key("attention.sliding_window", 0)
    windows = gemma2.windows_of(source) if windowed else [None] * count
    local = source.number("rope.freq_base_swa", 10000.0)
    norm = Norm(source.number("attention.layer_norm_rms_epsilon"))

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        size = hidden // mixer.heads if count == LARGE else mixer.head_dim
        if windowed and source.key("attention.sliding_window_pattern")[n] and mixer.rope:
            mixer = replace(mixer, rope=replace(mixer.rope, theta=local, scaling=None))
        ffn, ffn_part = lift_geglu(source, n)
        return Layer(LayerSpec(replace(mixer, window=windows[n], scale=size**-0.5), ffn, None, None), part | ffn_part)

    cap = source.number("final_logit_softcapping", 0.0) or None
    return lifting.lift_normed(source, layer, embedding_scale=math.sqrt(hidden), logit_softcap=cap)


TARGET = Target(
    name=NAME,
    rewrites=(
        CENTRED_STREAM,
        *GEGLU_REWRITES,
        POST_NORM_IDENTITY,
        output_bias_at(LEVEL),
        EMBEDDING_ROOT,
        HALF_PAIRS,
    ),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
