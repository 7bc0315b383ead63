"""llama.cpp's `granite_swa`: Llama's graph with a sliding window per layer (`src/models/granite-swa.cpp`).

It expresses Mistral and Mixtral exactly where the context is longer than the window, for which `llama` has no key. Each
layer must have attention sinks, one extra logit per head in the softmax; where the model has none, a very negative sink gets a
weight of zero.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.formats.gguf.header import f32, u32
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, LayerSpec, LayerTensors, Model, ModelSpec
from gguf_tools.targets import llama, lowering, names
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.limits import SINKS, WINDOWS, attentions, same
from gguf_tools.tensors.base import Filled, Tensor

NAME = "granite_swa"
NO_SINK = -1e30
"""A sink without effect: exp(NO_SINK - score) is 0 in float32 for every attention score."""
NAMES = {**llama.NAMES, "attn.sinks": names.SINKS}
SCALES = ("embedding_scale", "residual_scale", "attention.scale", "logit_scale")


EXPRESSES = llama.EXPRESSES | WINDOWS | SINKS


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    windows = [mixer.window for mixer in attentions(spec) if mixer.window]
    found = [] if any(window < spec.context_length for window in windows) else ["a model without sliding windows"]
    return found + same(windows, "sliding window") + llama.limits(spec)


def lower(model: Model) -> Lowered:
    """As for `llama`, with the windows and with sinks that have no effect."""
    mixers = attentions(model.spec)
    metadata = {
        f"{NAME}.logit_scale": f32(1.0),
        f"{NAME}.attention.sliding_window": u32(next(mixer.window for mixer in mixers if mixer.window)),
        f"{NAME}.attention.sliding_window_pattern": lowering.booleans(mixer.window is not None for mixer in mixers),
    }

    def sinks(layer: LayerSpec) -> dict[str, Tensor]:
        assert isinstance(layer.mixer, Attention)
        return {} if layer.mixer.sinks else {names.SINKS: Filled((layer.mixer.heads,), NO_SINK)}

    return llama.lower_as(NAME, model, metadata, sinks, lambda layer: names.rename(layer.tensors, NAMES))


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model; UnsupportedError if Granite's scales have an effect."""
    for key in SCALES:
        value = float(source.key(key, 0.0))
        if value not in (0.0, 1.0):
            raise UnsupportedError(
                f"{source.path}: {NAME}.{key} is {value:g}; expected 1, since tinyq does not support it"
            )
    pattern = [bool(windowed) for windowed in source.key("attention.sliding_window_pattern")]
    roped = list(source.key("attention.rope_pattern", ()))
    window = int(source.key("attention.sliding_window"))

    def sinks(n: int) -> LayerTensors:
        """The sinks of a layer, if some have an effect."""
        found = source.tensor(f"blk.{n}.{names.SINKS}")
        return {"attn.sinks": found} if float(found.array().max()) > NO_SINK else {}

    def change(n: int, mixer: Attention) -> Attention:
        rope = mixer.rope if n >= len(roped) or roped[n] else None
        return replace(mixer, rope=rope, window=window if pattern[n] else None, sinks=bool(sinks(n)))

    return llama.lift_with(source, change, sinks)


TARGET = Target(
    name=NAME,
    rewrites=llama.REWRITES,
    expresses=EXPRESSES,
    limits=limits,
    lower=lower,
    lift=lift,
)
