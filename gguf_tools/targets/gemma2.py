"""llama.cpp's `gemma2`: `gemma` with norms after mixer and feed-forward, caps on attention scores and logits, and sliding windows
(`src/models/gemma2.cpp`).

Both caps are always there. The attention scale is 1/√head_dim, but 1/√(hidden / heads) in models of 46 layers; queries are
multiplied by what the model's scale exceeds it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from gguf_tools.formats.gguf.header import Metadata, f32, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import GEGLU_REWRITES
from gguf_tools.rewrites.residual import EMBEDDING_ROOT
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import with_score_scale
from gguf_tools.targets import lifting, lowering, names
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
    SOFTCAP,
    WINDOWS,
    attention_limits,
    attentions,
    mlp_limits,
    norm_limits,
    same,
)

NAME = "gemma2"
LARGE = 46
"""The number of layers with which the graph takes another attention scale."""
ENDLESS = 1 << 23
"""A window larger than any context."""
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.FFN_NAMES}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=false"})
    | ATTENTION
    | PAIRS_HALF
    | GEGLU
    | EMBEDDING_SCALE
    | POST_NORMS
    | SOFTCAP
    | LOGIT_SOFTCAP
    | WINDOWS
    | {"Attention.scale"}
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = [] if spec.logit_softcap else ["logits without a cap"]
    caps = [mixer.softcap for mixer in attentions(spec)]
    found += same(caps, "cap on attention scores") + (["attention scores without a cap"] if None in caps else [])
    return (
        found
        + post_norm_limits(spec)
        + window_limits(spec)
        + scale_limits(spec)
        + attention_limits(spec)
        + norm_limits(spec)
    )


def post_norm_limits(spec: ModelSpec) -> list[str]:
    """Every layer must have a norm after its mixer and after its feed-forward."""
    full = all(layer.mixer_post_norm and layer.ffn_post_norm for layer in spec.layers)
    return mlp_limits(spec) + ([] if full else ["layers without norms after the mixer and the feed-forward"])


def window_limits(spec: ModelSpec) -> list[str]:
    """All windows must be of one size."""
    return same((mixer.window for mixer in attentions(spec) if mixer.window), "sliding window")


def graph_scale(spec: ModelSpec, mixer: Attention, large: int) -> float:
    """The attention scale of the graph, which is another in models of `large` layers."""
    size = spec.hidden // mixer.heads if len(spec.layers) == large else mixer.head_dim
    return float(size**-0.5)


def window_metadata(name: str, spec: ModelSpec) -> Metadata:
    """The size of the window, and the layers that have one.

    llama.cpp aborts if no layer has one; then all get one larger than any context.
    """
    mixers = attentions(spec)
    window = next((mixer.window for mixer in mixers if mixer.window), None)
    return {
        f"{name}.attention.sliding_window": u32(window or ENDLESS),
        f"{name}.attention.sliding_window_pattern": lowering.booleans(
            not window or mixer.window is not None for mixer in mixers
        ),
    }


def lower(model: Model) -> Lowered:
    """The model as a `gemma2` file: queries are scaled where the graph's scale is another, and tensors are renamed."""
    spec = model.spec
    scaled = with_score_scale(model, lambda mixer: graph_scale(spec, mixer, LARGE))
    assert spec.logit_softcap
    metadata = lowering.common_metadata(NAME, spec) | {
        f"{NAME}.feed_forward_length": u32(lowering.ffn_width(spec)),
        f"{NAME}.attn_logit_softcapping": f32(attentions(spec)[0].softcap or 0.0),
        f"{NAME}.final_logit_softcapping": f32(spec.logit_softcap),
        f"{NAME}.rope.freq_base_swa": lowering.common_metadata(NAME, spec)[f"{NAME}.rope.freq_base"],
        **window_metadata(NAME, spec),
    }
    return Lowered(NAME, metadata, lowering.lower_tensors(scaled, lambda layer: names.rename(layer.tensors, NAMES)))


def windows_of(source: GGUFSource) -> list[int | None]:
    """The window of each layer of a file, None for full attention."""
    stated = source.integer("attention.sliding_window")
    window = stated if stated < source.integer("context_length") else None
    return [window if local else None for local in source.key("attention.sliding_window_pattern")]


def with_local_base(source: GGUFSource, n: int, mixer: Attention) -> Attention:
    """Layer n's attention with the RoPE base of layers with a window, where the file states one of their own.

    llama.cpp: `rope_freq_base_train_swa` in `load_arch_hparams`.
    """
    if mixer.rope is None or not source.key("attention.sliding_window_pattern")[n]:
        return mixer
    theta = source.number("rope.freq_base_swa", mixer.rope.theta)
    return replace(mixer, rope=replace(mixer.rope, theta=theta))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    windows, hidden = windows_of(source), source.integer("embedding_length")

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, Norm(0.0))
        size = hidden // mixer.heads if source.integer("block_count") == LARGE else mixer.head_dim
        cap = source.number("attn_logit_softcapping", 50.0)
        mixer = replace(with_local_base(source, n, mixer), window=windows[n], scale=size**-0.5, softcap=cap)
        ffn, ffn_part = lift_geglu(source, n)
        return Layer(LayerSpec(mixer, ffn, None, None), part | ffn_part)

    cap = source.number("final_logit_softcapping", 30.0)
    return lifting.lift_normed(source, layer, embedding_scale=math.sqrt(hidden), logit_softcap=cap)


TARGET = Target(
    name=NAME,
    rewrites=(*GEGLU_REWRITES, EMBEDDING_ROOT, HALF_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
    nmse=GELU_NMSE,
    why=GELU_WHY,
)
