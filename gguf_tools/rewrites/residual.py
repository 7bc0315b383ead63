"""Exact rewrites of scales of the residual stream: what each layer reads multiplied by a number, and embeddings times √hidden.

With r_0 … r_i the factors up to layer i and R_i their product, the stream divided by R_i needs no factors if what layer i adds
is divided by R_i too: every norm of it gives the same, but for the epsilon, which would have to be divided by R_i². So the
rewrite is for models that norm their embeddings, whose stream has a mean square of about 1: the error of a norm is
|1 - 1 / R_i²| · eps / 2 there, and `CHANGE_OF_EPSILON` bounds it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate
from operator import mul

from gguf_tools.model.spec import MLP, Attention, DeltaNet, GatedMLP, Layer, LayerSpec, Model, ModelSpec, MoE, Norm
from gguf_tools.rewrites.base import (
    ANY_NORM,
    ATTENTION,
    DELTA_NET,
    ENDS,
    EXPERTS,
    LAYER,
    MLPS,
    MODEL,
    ROUTER,
    Rewrite,
)
from gguf_tools.rewrites.rope_pairs import ANY_ATTENTION
from gguf_tools.rewrites.scales import LAST
from gguf_tools.tensors.base import Filled
from gguf_tools.tensors.views import scaled, shifted

CHANGE_OF_EPSILON = 1e-6
"""The largest change of a norm's epsilon, against a mean square of 1; NMSE 1e-13 or less."""


def _factors(spec: ModelSpec) -> list[float]:
    """R_i of each layer: by how much the stream there exceeds one without factors."""
    return list(accumulate((layer.input_scale for layer in spec.layers), mul))


def _folds(spec: ModelSpec) -> bool:
    """Whether there are factors, all positive, and everything that reads the stream norms it first."""
    factors = _factors(spec)
    if all(layer.input_scale == 1.0 for layer in spec.layers) or spec.embedding_norm is None or min(factors) <= 0:
        return False
    if not all(layer.mixer_norm and (layer.ffn_norm or layer.parallel) for layer in spec.layers):
        return False
    eps = max(norm.eps for norm in [spec.output_norm, *_norms(spec)])
    return max(abs(1.0 - 1.0 / factor**2) for factor in factors) * eps <= CHANGE_OF_EPSILON


def _norms(spec: ModelSpec) -> list[Norm]:
    return [norm for layer in spec.layers for norm in (layer.mixer_norm, layer.ffn_norm) if norm]


def _fold(model: Model) -> Model:
    """What layer i adds, divided by R_i."""

    def changed(layer: Layer, factor: float) -> Layer:
        tensors = {role: scaled(t, 1.0 / factor) if role in LAST else t for role, t in layer.tensors.items()}
        return Layer(replace(layer.spec, input_scale=1.0), tensors)

    return model.with_layers(map(changed, model.layers, _factors(model.spec)))


FOLDED_INPUT_SCALE = Rewrite(
    name="factors on the residual stream folded into the output projections",
    why="norms undo a factor on the stream; what later layers add is divided by the product of all factors before",
    applies=_folds,
    apply=_fold,
    parts=(ModelSpec, LayerSpec, Norm, Attention, DeltaNet, GatedMLP, MLP, MoE),
    expresses=MODEL
    | ENDS
    | LAYER
    | {"LayerSpec.parallel", "LayerSpec.ffn_norm=None", "LayerSpec.input_scale", "LayerSpec.residual_scale"}
    | ANY_NORM
    | ATTENTION
    | ANY_ATTENTION
    | DELTA_NET
    | MLPS
    | EXPERTS
    | ROUTER,
    removes=frozenset({"LayerSpec.input_scale"}),
)
"""Not linear: a layer's factor is in the layers after it."""


def is_root(spec: ModelSpec) -> bool:
    """Whether embeddings are multiplied by √hidden, up to float32's rounding."""
    return math.isclose(spec.embedding_scale, math.sqrt(spec.hidden), rel_tol=1e-7)


def _to_root(model: Model) -> Model:
    """Embeddings divided by √hidden; the weights of the last norm undo it for an output projection tied to them."""
    spec, tensors = model.spec, dict(model.tensors)
    root = math.sqrt(spec.hidden)
    factor = spec.embedding_scale / root
    tensors["embedding"] = scaled(tensors["embedding"], factor)
    norm = spec.output_norm
    if spec.tied:
        weights = tensors.get("output_norm", Filled((spec.hidden,), 1.0 - norm.offset))
        tensors["output_norm"] = scaled(shifted(weights, norm.offset), 1.0 / factor)
        if norm.bias:
            tensors["output_norm_bias"] = scaled(tensors["output_norm_bias"], 1.0 / factor)
        norm = replace(norm, offset=0.0, weighted=True)
    return replace(model, spec=replace(spec, embedding_scale=root, output_norm=norm), tensors=tensors)


EMBEDDING_ROOT = Rewrite(
    name="embeddings divided by √hidden",
    why="the graph multiplies embeddings by √hidden; a tied output projection is corrected by the weights of the last norm",
    applies=lambda spec: not is_root(spec),
    apply=_to_root,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec, Norm),
    expresses=MODEL | ENDS | ANY_NORM,
)
