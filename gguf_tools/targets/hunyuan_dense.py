"""llama.cpp's `hunyuan-dense`: dense, RoPE in halves on whole heads, q/k norm on each head after RoPE
(`src/models/hunyuan-vl.cpp`, which `src/models/hunyuan-dense.cpp` inherits)."""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Attention, Layer, Model, ModelSpec
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets import lifting
from gguf_tools.targets.base import Target
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    LATE_QK_NORM,
    PAIRS_HALF,
    ROPE_SCALING,
    attention_limits,
    attentions,
    mlp_limits,
    norm_limits,
)
from gguf_tools.targets.lowering import lower_dense

NAME = "hunyuan-dense"

EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | LATE_QK_NORM | DENSE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    early = any(mixer.qk_norm and not mixer.norm_after_rope for mixer in attentions(spec))
    found = ["a q/k norm before rope"] if early else []
    return found + mlp_limits(spec) + attention_limits(spec, qk_norm=True) + norm_limits(spec)


def lift(source: GGUFSource) -> Model:
    """A file of this architecture as a Model."""

    def late(layer: Layer) -> Layer:
        mixer = layer.spec.mixer
        assert isinstance(mixer, Attention)
        return Layer(replace(layer.spec, mixer=replace(mixer, norm_after_rope=True)), layer.tensors)

    model = lifting.lift_dense(source)
    return model.with_layers(map(late, model.layers))


TARGET = Target(
    name=NAME,
    rewrites=(*ACTIVATION_REWRITES, HALF_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower_dense(NAME),
    lift=lift,
)
