"""What a rewrite is, and the map over layers that most of them are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A named rewrite; `applies` says whether the spec has what it removes.

    `holds` says whether the weights permit it, where the spec alone cannot tell; it reads small tensors only.

    `linear` says that a weighted mean of rewritten layers is the rewritten mean of the layers, so that layers can be blended
    after the rewrite too. That fails for products of weights, and for what makes layers of two kinds look alike.
    `keeps_row_angles` says that the angle between two layers' rows is the same after it, as spherical interpolation needs:
    it fails where rows get more columns, and where a matrix becomes a vector.
    """

    name: str
    why: str
    applies: Callable[[ModelSpec], bool]
    apply: Callable[[Model], Model]
    holds: Callable[[Model], bool] = lambda _: True
    linear: bool = False
    keeps_row_angles: bool = False


def map_layers(model: Model, change: Callable[[Layer], Layer]) -> Model:
    """The model with each layer replaced by `change`'s result."""
    return model.with_layers(map(change, model.layers))


def any_layer(test: Callable[[LayerSpec], bool]) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(map(test, spec.layers))
