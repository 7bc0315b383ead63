"""Models made of a spec and random weights alone, for what no checkpoint of transformers has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import (
    Attention,
    DeltaNet,
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    LayerTensors,
    Mixer,
    Model,
    ModelSpec,
    MoE,
    Norm,
    Router,
    Shape,
)
from gguf_tools.tensors.base import InMemory, Tensor

VOCAB, HIDDEN, CONTEXT = 40, 24, 64
PROMPTS: tuple[tuple[int, ...], ...] = (tuple(range(3, 23)), (5, 5, 7), (1,))

ATTENTION = Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(1e4, 8), qk_norm=Norm(1e-6))
DELTA = DeltaNet(key_heads=2, value_heads=4, key_dim=8, value_dim=8, kernel=4, norm=Norm(1e-6))
MLP = GatedMLP(20)
EXPERTS = MoE(4, 12, Router(top_k=2))


def layer(mixer: Mixer = ATTENTION, feed_forward: FeedForward = MLP, offset: float = 0.0) -> LayerSpec:
    """A layer whose two norms are alike."""
    norm = Norm(1e-6, offset)
    return LayerSpec(mixer, feed_forward, norm, norm)


def random_model(layers: Sequence[LayerSpec], *, tied: bool = False, seed: int = 0, **scales: Any) -> Model:
    """A model of these layers with random weights, float32 numbers all of them."""
    spec = ModelSpec(
        vocab_size=VOCAB,
        hidden=HIDDEN,
        context_length=CONTEXT,
        layers=tuple(layers),
        tied=tied,
        **{"output_norm": Norm(1e-6), **scales},
    )
    rng = np.random.default_rng(seed)

    def fill(role: str, shape: Shape) -> Tensor:
        values = rng.standard_normal(shape) / math.sqrt(shape[-1]) + (0.7 if len(shape) == 1 else 0.0)
        return InMemory(values.astype(np.float32), (role,))

    return filled(spec, fill)


def filled(spec: ModelSpec, fill: Callable[[str, Shape], Tensor]) -> Model:
    """A model of this spec whose tensors `fill` makes from role and shape."""

    def tensors(roles: Mapping[str, Shape]) -> LayerTensors:
        return {role: fill(role, shape) for role, shape in roles.items()}

    layers = tuple(tensors(one.roles(spec.hidden)) for one in spec.layers)
    return Model(spec=spec, tensors=tensors(spec.roles()), layer_tensors=layers, family="made up")


def named(model: Model) -> dict[str, Tensor]:
    """Every tensor of the model, those of layer N as `layers.N.…`."""
    layers = {f"layers.{n}.{role}": t for n, one in enumerate(model.layers) for role, t in one.tensors.items()}
    return {**model.tensors, **layers}


def with_layer(model: Model, n: int, tensors: Mapping[str, Tensor], spec: LayerSpec | None = None) -> Model:
    """The model with some tensors of layer n replaced, and with the layer's spec if one is given.

    Tensors for which that spec has no role are left out.
    """
    old = model.layers[n]
    spec = spec or old.spec
    both = {**old.tensors, **tensors}
    new = Layer(spec, {role: both[role] for role in spec.roles(model.spec.hidden)})
    return model.with_layers((*model.layers[:n], new, *model.layers[n + 1 :]))
