"""What a rewrite is, and the map over layers that most of them are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gguf_tools.model.spec import LayerSpec, Model, ModelSpec
from gguf_tools.tensors.base import Tensor

LayerTensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A named rewrite; `applies` says whether the spec has what it removes.

    `holds` says whether the weights permit it, where the spec alone cannot tell; it reads small tensors only.
    """

    name: str
    why: str
    applies: Callable[[ModelSpec], bool]
    apply: Callable[[Model], Model]
    holds: Callable[[Model], bool] = lambda _: True


def map_layers(model: Model, change: Callable[[LayerSpec, LayerTensors], tuple[LayerSpec, LayerTensors]]) -> Model:
    """The model with each layer, and its tensors by their names relative to the layer, replaced by `change`'s result."""
    tensors = {role: tensor for role, tensor in model.tensors.items() if not role.startswith("layers.")}
    layers = []
    for n, layer in enumerate(model.spec.layers):
        spec, changed = change(layer, model.layer(n))
        layers.append(spec)
        tensors |= {f"layers.{n}.{name}": tensor for name, tensor in changed.items()}
    return replace(model, spec=replace(model.spec, layers=tuple(layers)), tensors=tensors)


def any_layer(test: Callable[[LayerSpec], bool]) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(map(test, spec.layers))
