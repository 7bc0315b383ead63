"""Exact rewrites of norms: weights of ones, biases folded away, layer norms as RMS norms, a norm of the embeddings.

With P = I - 1·1ᵀ/n, which subtracts the mean, a layer norm is the RMS norm of P·x. If every embedding and everything that a layer
adds is multiplied by P, the residual stream has the mean 0, so that P changes nothing and the RMS norm gives the same. The
variance is the mean square then, and so the epsilon stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gguf_tools.model.spec import MLP, Attention, GatedMLP, Layer, LayerSpec, LayerTensors, Model, ModelSpec, MoE, Norm
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
    map_layers,
)
from gguf_tools.rewrites.rope_pairs import ANY_ATTENTION
from gguf_tools.rewrites.scales import LAST
from gguf_tools.tensors.base import Filled, Tensor
from gguf_tools.tensors.products import Centred, Doubles, Product, RowsMapped

_LAYERS = LAYER | {"LayerSpec.parallel", "LayerSpec.ffn_norm=None", "LayerSpec.residual_scale", "LayerSpec.input_scale"}
_POST = frozenset({"LayerSpec.mixer_norm=None", "LayerSpec.mixer_post_norm=Norm", "LayerSpec.ffn_post_norm=Norm"})


def _norms(spec: ModelSpec) -> list[Norm]:
    """Every norm of the residual stream, of what is added to it, and of the heads of queries and keys."""
    found = [getattr(layer, name) for layer in spec.layers for name in _norm_fields(layer)]
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    return [spec.output_norm, *found, *(mixer.qk_norm for mixer in mixers if mixer.qk_norm)]


def _norm_fields(layer: LayerSpec) -> list[str]:
    return [name for name in ("mixer_norm", "ffn_norm", "mixer_post_norm", "ffn_post_norm") if getattr(layer, name)]


# Weights


def _ones(model: Model) -> Model:
    """Norms without weights get weights of 1."""
    norm = model.spec.output_norm

    def weighted(old: Norm) -> Norm:
        return old if old.weighted else replace(old, weighted=True, offset=0.0)

    def change(layer: Layer) -> Layer:
        """The layer with weights for each of its norms."""
        norms: dict[str, Any] = {n: weighted(getattr(layer.spec, n)) for n in _norm_fields(layer.spec)}
        spec = replace(layer.spec, **norms)
        if isinstance(spec.mixer, Attention) and spec.mixer.qk_norm:
            spec = replace(spec, mixer=replace(spec.mixer, qk_norm=weighted(spec.mixer.qk_norm)))
        roles = spec.roles(model.spec.hidden)
        return Layer(spec, {role: layer.tensors.get(role) or Filled(shape, 1.0) for role, shape in roles.items()})

    made = map_layers(model, change)
    tensors = dict(made.tensors)
    if not norm.weighted:
        tensors["output_norm"] = Filled((model.spec.hidden,), 1.0)
    return replace(made, spec=replace(made.spec, output_norm=weighted(norm)), tensors=tensors)


UNIT_NORMS = Rewrite(
    name="norms without weights",
    why="the weights are 1",
    applies=lambda spec: any(not norm.weighted for norm in _norms(spec)),
    apply=_ones,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec, LayerSpec, Attention, Norm),
    expresses=MODEL | ENDS | _LAYERS | _POST | ATTENTION | ANY_ATTENTION | ANY_NORM,
    removes=frozenset({"Norm.weighted"}),
)


# Biases


def _biased_norms(layer: LayerSpec) -> list[str]:
    return [name for name in _norm_fields(layer) if getattr(layer, name).bias]


def _biases_fit(spec: ModelSpec) -> bool:
    """Whether some norm has a bias, and every bias is read by matrices that can have one themselves."""
    for layer in spec.layers:
        biased = _biased_norms(layer)
        if any("post" in name for name in biased):
            return False
        if "mixer_norm" in biased and not isinstance(layer.mixer, Attention):
            return False
        reads = "ffn_norm" if layer.ffn_norm else "mixer_norm"
        if reads in biased and not isinstance(layer.feed_forward, GatedMLP | MLP):
            return False
    return spec.output_norm.bias or any(map(_biased_norms, spec.layers))


def _with_product(tensors: LayerTensors, role: str, vector: Tensor) -> None:
    """Add the product of the matrix `role` and a vector to its bias."""
    tensors[f"{role}_bias"] = Product(tensors[role], vector, tensors.get(f"{role}_bias"))


def _fold_norm_biases(model: Model) -> Model:
    """What a norm adds is added by the matrices that read it: W · (y + b) = W · y + W · b."""

    def change(layer: Layer) -> Layer:
        """The layer with the biases of its norms in its projections."""
        spec, tensors = layer.spec, dict(layer.tensors)
        biased = _biased_norms(spec)
        mixer, ffn = spec.mixer, spec.feed_forward
        reads = "ffn_norm" if spec.ffn_norm else "mixer_norm"
        if "mixer_norm" in biased and isinstance(mixer, Attention):
            for name in ("q", "k", "v", *(["gate"] if mixer.gated else [])):
                _with_product(tensors, f"attn.{name}", tensors["mixer_norm_bias"])
            mixer = replace(mixer, bias=mixer.bias | {"q", "k", "v"})
        if reads in biased and isinstance(ffn, GatedMLP | MLP):
            names = ("gate", "up") if isinstance(ffn, GatedMLP) else ("up",)
            for name in names:
                _with_product(tensors, f"ffn.{name}", tensors[f"{reads}_bias"])
            ffn = replace(ffn, bias=ffn.bias | set(names))
        for name in biased:
            del tensors[f"{name}_bias"]
            spec = replace(spec, **{name: replace(getattr(spec, name), bias=False)})
        return Layer(replace(spec, mixer=mixer, feed_forward=ffn), tensors)

    made = map_layers(model, change)
    norm, tensors = made.spec.output_norm, dict(made.tensors)
    if not norm.bias:
        return made
    output = tensors["embedding" if made.spec.tied else "output"]
    tensors["output_bias"] = Product(output, tensors.pop("output_norm_bias"), tensors.get("output_bias"))
    spec = replace(made.spec, output_norm=replace(norm, bias=False), output_bias=True)
    return replace(made, spec=spec, tensors=tensors)


NORM_BIASES = Rewrite(
    name="biases of norms folded into projections",
    why="what a norm adds to all tokens becomes biases of the matrices that read the norm",
    applies=_biases_fit,
    apply=_fold_norm_biases,
    parts=(ModelSpec, LayerSpec, Norm, Attention, GatedMLP, MLP),
    expresses=MODEL | ENDS | _LAYERS | _POST | ANY_NORM | ATTENTION | ANY_ATTENTION | MLPS,
    removes=frozenset({"Norm.bias"}),
)
"""Not linear: it multiplies a layer's matrices by its norms' biases."""


# Layer norms


def _stream_is_centred(spec: ModelSpec) -> bool:
    """Whether all that reads the residual stream subtracts its mean first."""
    for layer in spec.layers:
        if layer.mixer_norm is None or (layer.ffn_norm is None and not layer.parallel):
            return False
        if any(not getattr(layer, name).centred or getattr(layer, name).bias for name in _norm_fields(layer)):
            return False
    return spec.output_norm.centred and not spec.output_norm.bias


def _centre(model: Model) -> Model:
    """The model with RMS norms, whose embeddings and output projections of the layers are centred."""

    def change(layer: Layer) -> Layer:
        tensors = {role: Centred(t) if role in LAST else t for role, t in layer.tensors.items()}
        norms: dict[str, Any] = {
            name: replace(getattr(layer.spec, name), centred=False) for name in _norm_fields(layer.spec)
        }
        return Layer(replace(layer.spec, **norms), tensors)

    made, tensors = map_layers(model, change), dict(model.tensors)
    if model.spec.tied:
        tensors["output"] = tensors["embedding"]
    for role in ("embedding", "positions"):
        if role in tensors:
            tensors[role] = RowsMapped(
                tensors[role], lambda rows: rows - rows.mean(axis=1, keepdims=True), "centred", True
            )
    norm = replace(model.spec.output_norm, centred=False)
    return replace(made, spec=replace(made.spec, output_norm=norm, tied=False), tensors=tensors)


CENTRED_STREAM = Rewrite(
    name="layer norms as RMS norms",
    why="embeddings and the output projections of all layers have their mean subtracted, after which a layer norm is an RMS norm",
    applies=_stream_is_centred,
    apply=_centre,
    linear=True,
    parts=(ModelSpec, LayerSpec, Norm, Attention, GatedMLP, MLP, MoE),
    expresses=MODEL
    | (ENDS - {"ModelSpec.embedding_norm=Norm"})
    | _LAYERS
    | ANY_NORM
    | ATTENTION
    | DELTA_NET
    | ANY_ATTENTION
    | MLPS
    | EXPERTS
    | ROUTER,
    removes=frozenset({"Norm.centred"}),
)
LAYER_NORM_REWRITES = (NORM_BIASES, CENTRED_STREAM)


# Embeddings


def _fold_embedding_norm(model: Model) -> Model:
    """The model whose embeddings are stored normed; a tied output projection is stored separately first."""
    spec, tensors = model.spec, dict(model.tensors)
    norm = spec.embedding_norm
    if norm is None:
        return model
    weights, bias = tensors.pop("embedding_norm", None), tensors.pop("embedding_norm_bias", None)
    factor = weights.array().astype(np.float64) + norm.offset if weights else np.ones(1)
    added = bias.array().astype(np.float64) if bias else np.zeros(1)

    def normed(rows: Doubles) -> Doubles:
        rows = rows * spec.embedding_scale
        rows = rows - rows.mean(axis=1, keepdims=True) if norm.centred else rows
        squares: Doubles = np.square(rows).mean(axis=1, keepdims=True)
        made: Doubles = rows / np.sqrt(squares + norm.eps) * factor + added
        return made

    if spec.tied:
        tensors["output"] = tensors["embedding"]
    tensors["embedding"] = RowsMapped(tensors["embedding"], normed, "normed")
    return replace(model, spec=replace(spec, embedding_norm=None, embedding_scale=1.0, tied=False), tensors=tensors)


FOLDED_EMBEDDING_NORM = Rewrite(
    name="normed embeddings stored",
    why="the norm of an embedding depends on the token alone",
    applies=lambda spec: spec.embedding_norm is not None,
    apply=_fold_embedding_norm,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec, Norm),
    expresses=MODEL | ENDS | ANY_NORM,
    removes=frozenset({"ModelSpec.embedding_norm=Norm"}),
)
