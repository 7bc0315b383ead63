"""Exact rewrites for hybrids: DeltaNet keys wider than values, dense layers among MoE layers, and models with one mixer type."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import (
    Attention,
    DeltaNet,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Mixer,
    Model,
    ModelSpec,
    MoE,
    Norm,
    SharedExpert,
)
from gguf_tools.rewrites.base import DELTA_NET, EXPERTS, LAYER, NORM, Rewrite, map_layers
from gguf_tools.tensors.base import Filled
from gguf_tools.tensors.views import Columns, concatenate, scaled, take


def _repeats(mixer: DeltaNet) -> int:
    """key_dim / value_dim where that is a whole number, else 1."""
    times, rest = divmod(mixer.key_dim, mixer.value_dim)
    return 1 if rest else times


def _wide_keys(spec: ModelSpec) -> bool:
    return any(_repeats(layer.mixer) > 1 for layer in spec.layers if isinstance(layer.mixer, DeltaNet))


def _repeat_values(model: Model) -> Model:
    """Widens the value heads of DeltaNet layers to `key_dim` by repeating their dimensions; llama.cpp has one size for both.

    The RMS over a head of repeated values is unchanged. The gate z, the norm weight and the output projection are zero for the
    copies, so that they add nothing to the output.
    """

    def change(layer: Layer) -> Layer:
        """The layer with value heads of `key_dim` dimensions, if it is a DeltaNet layer that needs it."""
        mixer, tensors = layer.spec.mixer, layer.tensors
        if not isinstance(mixer, DeltaNet) or _repeats(mixer) == 1:
            return layer
        heads, old, new = mixer.value_heads, mixer.value_dim, mixer.key_dim
        repeated = [head * old + d % old for head in range(heads) for d in range(new)]
        # The copies keep the RMS over the head; their norm weights (weight + offset) are zero.
        zeroed = [head * old + d if d < old else heads * old for head in range(heads) for d in range(new)]
        hidden, keys = model.spec.hidden, 2 * mixer.key_heads * mixer.key_dim
        made: LayerTensors = {
            "delta.v": take(tensors["delta.v"], repeated),
            "delta.z": take(concatenate([tensors["delta.z"], Filled((1, hidden))]), zeroed),
            "delta.conv": take(tensors["delta.conv"], [*range(keys), *(keys + n for n in repeated)]),
            "delta.norm": concatenate([tensors["delta.norm"], Filled((new - old,), -mixer.norm.offset)]),
            "delta.o": Columns((tensors["delta.o"], Filled((hidden, 1))), np.asarray(zeroed)),
        }
        return Layer(replace(layer.spec, mixer=replace(mixer, value_dim=new)), {**tensors, **made})

    return map_layers(model, change)


def _dense_among_experts(spec: ModelSpec) -> bool:
    kinds = {type(layer.feed_forward) for layer in spec.layers}
    return kinds == {GatedMLP, MoE} and not any(
        layer.feed_forward.bias for layer in spec.layers if isinstance(layer.feed_forward, GatedMLP)
    )


def _dense_to_shared(model: Model) -> Model:
    """Turns each dense layer into an MoE layer with the shapes of the model's first one, whose routed experts are zero.

    The dense feed-forward becomes the shared expert. Its gate is zero, sigmoid(0) = 0.5, so its down projection is doubled.
    """
    pattern = next(layer.feed_forward for layer in model.spec.layers if isinstance(layer.feed_forward, MoE))

    def change(layer: Layer) -> Layer:
        ffn, tensors = layer.spec.feed_forward, layer.tensors
        if not isinstance(ffn, GatedMLP):
            return layer
        made = replace(pattern, shared=SharedExpert(ffn.width, gated=True))
        kept: LayerTensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("ffn.")}
        zeros = {name: Filled(shape) for name, shape in made.roles(model.spec.hidden).items()}
        moved = {f"shared.{name}": tensors[f"ffn.{name}"] for name in ("gate", "up")}
        moved["shared.down"] = scaled(tensors["ffn.down"], 2.0)
        return Layer(replace(layer.spec, feed_forward=made), {**kept, **zeros, **moved})

    return map_layers(model, change)


IDLE_DIM = 32
"""Head dimension of the idle layer, which has one head."""


def _one_kind(spec: ModelSpec) -> bool:
    return len({type(layer.mixer) for layer in spec.layers}) == 1


def _idle_layer(model: Model) -> Model:
    """Appends a layer of zeros with the mixer type that the model lacks; being residual, it adds nothing."""
    last = model.spec.layers[-1]
    norm = last.mixer_norm or model.spec.output_norm
    mixer: Mixer
    if isinstance(last.mixer, Attention):
        mixer = DeltaNet(
            key_heads=1,
            value_heads=1,
            key_dim=IDLE_DIM,
            value_dim=IDLE_DIM,
            kernel=4,
            norm=norm,
            l2_eps=norm.eps,
        )
    else:
        mixer = Attention(heads=1, kv_heads=1, head_dim=IDLE_DIM, rope=Rope(10000.0, IDLE_DIM), qk_norm=norm)
    idle = replace(last, mixer=mixer)
    zeros = {role: Filled(shape) for role, shape in idle.roles(model.spec.hidden).items()}
    return model.with_layers((*model.layers, Layer(idle, zeros)))


REPEATED_VALUES = Rewrite(
    name="repeated values",
    why="widens value heads to the size of key heads: repeated values keep the RMS over a head, and have zero norm weights",
    applies=_wide_keys,
    apply=_repeat_values,
    linear=True,
    keeps_row_angles=True,
    parts=(DeltaNet, Norm),
    expresses=DELTA_NET | NORM,
)
DENSE_AS_SHARED = Rewrite(
    name="dense layers as shared experts",
    why="a dense layer becomes a shared expert with routed experts of zeros; its gate of zeros gives 0.5, so its down projection "
    "is doubled",
    applies=_dense_among_experts,
    apply=_dense_to_shared,
    parts=(GatedMLP, MoE, SharedExpert),
    expresses=EXPERTS | {"GatedMLP.activation=silu"},
)
IDLE_LAYER = Rewrite(
    name="idle last layer",
    why="llama.cpp's hybrids need linear and full attention; a layer of zeros with the missing type adds nothing",
    applies=_one_kind,
    apply=_idle_layer,
    linear=True,
    keeps_row_angles=True,
    parts=(LayerSpec,),
    expresses=LAYER,
)
