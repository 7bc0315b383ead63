"""llama.cpp's `olmo2`: norms after mixer and feed-forward and none before, one norm of q and of k over all heads, RoPE on whole
heads in halves, and sliding windows (`src/models/olmo2.cpp`).

The output projection is required. Layers with a window have the RoPE of the others without its scaling.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets import gemma2, gemma3, lifting, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_HALF,
    POST_NORMS,
    QK_NORM,
    ROPE_SCALING,
    WHOLE_NORM,
    WINDOWS,
    attentions,
    norm_limits,
    ropes,
    same,
    square_limits,
)

NAME = "olmo2"
NAMES = {**names.NORM_NAMES, **names.ATTENTION_NAMES, **names.FFN_NAMES}

EXPRESSES = (
    (DECODER - {"ModelSpec.tied=true", "LayerSpec.mixer_norm=Norm", "LayerSpec.ffn_norm=Norm"})
    | {"LayerSpec.mixer_norm=None", "LayerSpec.ffn_norm=None"}
    | ATTENTION
    | PAIRS_HALF
    | ROPE_SCALING
    | QK_NORM
    | WHOLE_NORM
    | DENSE
    | POST_NORMS
    | WINDOWS
)


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = same((rope.theta for rope in ropes(spec)), "base of rope")
    if not all(mixer.norm_whole for mixer in attentions(spec)):
        found.append("attention without one q/k norm over all heads")
    found += gemma2.post_norm_limits(spec) + gemma2.window_limits(spec) + square_limits(spec) + norm_limits(spec)
    return found + gemma3.local_limits(spec, qk_norm=True)


def lower(model: Model) -> Lowered:
    """The model as an `olmo2` file: tensors are renamed, their values do not change."""
    spec = model.spec
    metadata = lowering.common_metadata(NAME, spec)
    metadata |= {f"{NAME}.{key}": value for key, value in lowering.rope_metadata(gemma3.global_rope(spec)).items()}
    metadata[f"{NAME}.feed_forward_length"] = u32(lowering.ffn_width(spec))
    if any(mixer.window for mixer in attentions(spec)):
        metadata |= gemma2.window_metadata(NAME, spec)
    return Lowered(NAME, metadata, lowering.lower_tensors(model, lambda layer: names.rename(layer.tensors, NAMES)))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    windowed = source.key("attention.sliding_window", 0)
    norm = Norm(source.number("attention.layer_norm_rms_epsilon"))

    def layer(n: int) -> Layer:
        mixer, part = lifting.lift_attention(source, n, norm)
        if windowed and source.key("attention.sliding_window_pattern")[n] and mixer.rope:
            rope = replace(mixer.rope, scaling=None)
            mixer = replace(mixer, rope=rope, window=gemma2.windows_of(source)[n])
        ffn, ffn_part = lifting.lift_mlp(source, n)
        return Layer(LayerSpec(replace(mixer, norm_whole=True), ffn, None, None), part | ffn_part)

    return lifting.lift_normed(source, layer)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, HALF_PAIRS, UNTIED_OUTPUT),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
