"""Exact rewrites that add a gate or a shared expert without changing the output."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from gguf_tools.model.spec import Attention, Layer, LayerSpec, LayerTensors, Model, MoE, SharedExpert
from gguf_tools.rewrites.base import ATTENTION, EXPERTS, Rewrite, any_layer, map_layers
from gguf_tools.tensors.base import Filled
from gguf_tools.tensors.views import scaled


def _ungated_attention(layer: LayerSpec) -> bool:
    return isinstance(layer.mixer, Attention) and not layer.mixer.gated


def _shared_to_gate(layer: LayerSpec) -> bool:
    ffn = layer.feed_forward
    return isinstance(ffn, MoE) and ffn.shared is not None and not ffn.shared.gated


def _no_shared(layer: LayerSpec) -> bool:
    return isinstance(layer.feed_forward, MoE) and layer.feed_forward.shared is None


def _gate_attention(model: Model) -> Model:
    """Adds an attention gate of zeros, sigmoid(0) = 0.5, and doubles the output projection."""

    def change(layer: Layer) -> Layer:
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or mixer.gated:
            return layer
        gated = replace(mixer, gated=True)
        roles = gated.roles(model.spec.hidden)
        made: LayerTensors = {name: Filled(roles[name]) for name in ("attn.gate", "attn.gate_bias") if name in roles}
        made["attn.o"] = scaled(layer.tensors["attn.o"], 2.0)
        return Layer(replace(layer.spec, mixer=gated), {**layer.tensors, **made})

    return map_layers(model, change)


def _gate_shared(model: Model) -> Model:
    """Adds a gate of zeros, sigmoid(0) = 0.5, to shared experts without one, and doubles their down projection."""

    def change(layer: Layer) -> Layer:
        ffn = layer.spec.feed_forward
        if not isinstance(ffn, MoE) or ffn.shared is None or ffn.shared.gated:
            return layer
        made: LayerTensors = {
            "shared.sigmoid": Filled((model.spec.hidden,)),
            "shared.down": scaled(layer.tensors["shared.down"], 2.0),
        }
        spec = replace(layer.spec, feed_forward=replace(ffn, shared=replace(ffn.shared, gated=True)))
        return Layer(spec, {**layer.tensors, **made})

    return map_layers(model, change)


EMPTY_SHARED_WIDTH = 32
"""Width of an added shared expert: one block of the quantized types with 32 elements per block."""


def _empty_shared(model: Model, *, gated: bool) -> Model:
    """Adds a shared expert of zeros to MoE layers without one, as wide as the widest of the model's shared experts."""

    def change(layer: Layer) -> Layer:
        ffn = layer.spec.feed_forward
        if not isinstance(ffn, MoE) or ffn.shared is not None:
            return layer
        widths = {
            ff.shared.width for ff in (la.feed_forward for la in model.spec.layers) if isinstance(ff, MoE) and ff.shared
        }
        made = replace(ffn, shared=SharedExpert(max(widths, default=EMPTY_SHARED_WIDTH), gated))
        roles = made.roles(model.spec.hidden)
        zeros: LayerTensors = {name: Filled(shape) for name, shape in roles.items() if name.startswith("shared.")}
        return Layer(replace(layer.spec, feed_forward=made), {**layer.tensors, **zeros})

    return map_layers(model, change)


ZERO_ATTENTION_GATE = Rewrite(
    name="zero attention gate",
    why="the sigmoid of a gate of zeros is 0.5, so the output projection is doubled",
    applies=any_layer(_ungated_attention),
    apply=_gate_attention,
    linear=True,
    keeps_row_angles=True,
    parts=(Attention,),
    expresses=ATTENTION,
)


ZERO_SHARED_GATE = Rewrite(
    name="zero shared-expert gate",
    why="the sigmoid of a gate of zeros is 0.5, so the shared expert's down projection is doubled",
    applies=any_layer(_shared_to_gate),
    apply=_gate_shared,
    linear=True,
    keeps_row_angles=True,
    parts=(MoE, SharedExpert),
    expresses=EXPERTS,
)


EMPTY_SHARED_EXPERT = Rewrite(
    name="empty shared expert",
    why="a shared expert of zeros adds nothing",
    applies=any_layer(_no_shared),
    apply=partial(_empty_shared, gated=True),
    linear=True,
    keeps_row_angles=True,
    parts=(MoE, SharedExpert),
    expresses=EXPERTS,
)


EMPTY_UNGATED_EXPERT = replace(EMPTY_SHARED_EXPERT, apply=partial(_empty_shared, gated=False))
