"""llama.cpp's `cohere2`: the graph of `command-r` with sliding windows, and with RoPE in the layers that have one alone
(`src/models/cohere2.cpp`)."""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, Layer, Model, ModelSpec
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import INTERLEAVED_PAIRS
from gguf_tools.targets import command_r, lifting, lowering
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import NO_ROPE, WINDOWS, attentions, ropes, same

NAME = "cohere2"
EXPRESSES = command_r.GRAPH | WINDOWS | NO_ROPE
ENDLESS = 1 << 23
"""A window larger than any context."""


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    found = same((mixer.window for mixer in attentions(spec) if mixer.window), "sliding window")
    if any(mixer.rope is None and mixer.window for mixer in attentions(spec)):
        found.append("a sliding window in layers without rope")
    if any(mixer.rope is not None and not mixer.window for mixer in attentions(spec)):
        found += ["rope in layers without a window"] if any(mixer.window for mixer in attentions(spec)) else []
    found += [] if ropes(spec) else ["a model without rope in any layer"]
    return found + command_r.graph_limits(spec)


def lower(model: Model) -> Lowered:
    """As for `command-r`; layers with rope have a window, and where the model has none one that ends before no context does."""
    mixers = attentions(model.spec)
    window = next((mixer.window for mixer in mixers if mixer.window), None)
    extra = {
        f"{NAME}.attention.sliding_window": u32(window or ENDLESS),
        f"{NAME}.attention.sliding_window_pattern": lowering.booleans(mixer.rope is not None for mixer in mixers),
    }
    return command_r.lower_as(NAME, model, extra)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""
    pattern, stated = source.key("attention.sliding_window_pattern"), source.integer("attention.sliding_window")
    window = stated if stated < source.integer("context_length") else None

    def layer(n: int) -> Layer:
        bare = command_r.lift_layer(source, n)
        mixer = bare.spec.mixer
        assert isinstance(mixer, Attention)
        mixer = replace(mixer, window=window) if pattern[n] else replace(mixer, rope=None)
        return Layer(replace(bare.spec, mixer=mixer), bare.tensors)

    return lifting.lift_normed(source, layer, centred=True, logit_scale=source.number("logit_scale") or 1.0)


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, INTERLEAVED_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
