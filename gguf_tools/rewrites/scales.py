"""Exact rewrites of scales (of embeddings, logits, attention scores and what layers add), and of a tied output projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gguf_tools.model.spec import (
    MLP,
    Attention,
    DeltaNet,
    GatedMLP,
    Layer,
    LayerSpec,
    Mamba2,
    Mixer,
    Model,
    ModelSpec,
    MoE,
    Norm,
)
from gguf_tools.rewrites.base import (
    ANY_LAYER,
    ANY_NORM,
    ATTENTION,
    DELTA_NET,
    ENDS,
    EXPERTS,
    LAYER,
    MLPS,
    MODEL,
    NORM,
    STATE_SPACE,
    Rewrite,
    any_layer,
    map_layers,
)
from gguf_tools.tensors.base import Filled
from gguf_tools.tensors.views import Mapped, scaled, shifted
from quant.encode import FloatArray


def _fold_embedding_scale(model: Model) -> Model:
    embedding = model.tensors["embedding"]
    tensors = {**model.tensors, "embedding": scaled(embedding, model.spec.embedding_scale)}
    if model.spec.tied:
        tensors["output"] = embedding
    return replace(model, spec=replace(model.spec, embedding_scale=1.0, tied=False), tensors=tensors)


def _fold_logit_scale(model: Model) -> Model:
    """The weights and the bias of the norm before the output, and the bias after it, times the logit scale."""
    norm, scale = model.spec.output_norm, model.spec.logit_scale

    def function(x: FloatArray, _: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return (x.astype(np.float64) + norm.offset) * scale

    made = {role: scaled(t, scale) for role, t in model.tensors.items() if role in ("output_norm_bias", "output_bias")}
    if norm.weighted:
        made["output_norm"] = Mapped(model.tensors["output_norm"], function, f"× {scale:g}")
    else:
        made["output_norm"] = Filled((model.spec.hidden,), scale)
    spec = replace(model.spec, logit_scale=1.0, output_norm=replace(norm, offset=0.0, weighted=True))
    return replace(model, spec=spec, tensors={**model.tensors, **made})


FOLDED_EMBEDDING_SCALE = Rewrite(
    name="embedding scale folded into the embeddings",
    why="the embedding matrix is multiplied by the scale; an output projection tied to it is stored separately first",
    applies=lambda spec: spec.embedding_scale != 1.0,
    apply=_fold_embedding_scale,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec,),
    expresses=MODEL | ENDS,
    removes=frozenset({"ModelSpec.embedding_scale"}),
)
FOLDED_LOGIT_SCALE = Rewrite(
    name="logit scale folded into the final norm",
    why="the final norm's weights are multiplied by the logit scale",
    applies=lambda spec: spec.logit_scale != 1.0,
    apply=_fold_logit_scale,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec, Norm),
    expresses=MODEL | ENDS | ANY_NORM,
    removes=frozenset({"ModelSpec.logit_scale"}),
)


def _fold_multipliers(model: Model) -> Model:
    def change(layer: Layer) -> Layer:
        factors = dict(layer.spec.multipliers)
        tensors = {role: scaled(t, factors[role]) if role in factors else t for role, t in layer.tensors.items()}
        return Layer(replace(layer.spec, multipliers=()), tensors) if factors else layer

    return map_layers(model, change)


FOLDED_MULTIPLIERS = Rewrite(
    name="multipliers folded into the matrices",
    why="each matrix or bias is multiplied by its number",
    applies=any_layer(lambda layer: bool(layer.multipliers)),
    apply=_fold_multipliers,
    linear=True,
    keeps_row_angles=True,
    parts=(LayerSpec,),
    expresses=ANY_LAYER,
    removes=frozenset({"LayerSpec.multipliers"}),
)


LAST = (
    "attn.o",
    "attn.o_bias",
    "delta.o",
    "ssm.o",
    "ssm.o_bias",
    "ffn.down",
    "ffn.down_bias",
    "moe.down",
    "shared.down",
)
"""Roles of the projections, and their biases, that give what a mixer or a feed-forward adds."""


def _fold_residual_scale(model: Model) -> Model:
    def change(layer: Layer) -> Layer:
        scale = layer.spec.residual_scale
        tensors = {role: scaled(t, scale) if role in LAST else t for role, t in layer.tensors.items()}
        return layer if scale == 1.0 else Layer(replace(layer.spec, residual_scale=1.0), tensors)

    return map_layers(model, change)


def _odd_scale(mixer: Mixer) -> bool:
    return isinstance(mixer, Attention) and mixer.score_scale != mixer.head_dim**-0.5


def with_score_scale(model: Model, wanted: Callable[[Attention], float]) -> Model:
    """The model with the attention scale `wanted` in every layer.

    Queries are multiplied by what their layer's scale exceeds it: their norm's weights where they are normed, else their rows.
    """

    def change(layer: Layer) -> Layer:
        """The layer with that attention scale, if it has another."""
        mixer, tensors = layer.spec.mixer, dict(layer.tensors)
        if not isinstance(mixer, Attention) or mixer.score_scale == wanted(mixer):
            return layer
        factor = mixer.score_scale / wanted(mixer)
        if mixer.norm_gain:
            tensors["attn.q_gain"] = scaled(tensors["attn.q_gain"], factor)
        elif mixer.qk_norm:
            # One norm serves q and k, so an offset of the weights is added to both.
            offset, norm = mixer.qk_norm.offset, replace(mixer.qk_norm, offset=0.0)
            tensors["attn.q_norm"] = scaled(shifted(tensors["attn.q_norm"], offset), factor)
            tensors["attn.k_norm"] = shifted(tensors["attn.k_norm"], offset) if offset else tensors["attn.k_norm"]
            mixer = replace(mixer, qk_norm=norm)
        else:
            tensors |= {role: scaled(tensors[role], factor) for role in ("attn.q", "attn.q_bias") if role in tensors}
        scale = None if wanted(mixer) == mixer.head_dim**-0.5 else wanted(mixer)
        return Layer(replace(layer.spec, mixer=replace(mixer, scale=scale)), tensors)

    return map_layers(model, change)


FOLDED_RESIDUAL_SCALE = Rewrite(
    name="residual scale folded into the output projections",
    why="what multiplies all that a layer adds multiplies the last matrix of its mixer and of its feed-forward",
    applies=any_layer(lambda layer: layer.residual_scale != 1.0),
    apply=_fold_residual_scale,
    linear=True,
    keeps_row_angles=True,
    parts=(LayerSpec, Attention, DeltaNet, Mamba2, GatedMLP, MLP, MoE),
    expresses=LAYER
    | STATE_SPACE
    | ATTENTION
    | DELTA_NET
    | EXPERTS
    | MLPS
    | {"LayerSpec.residual_scale", "Attention.scale", "Attention.rope=None"},
    removes=frozenset({"LayerSpec.residual_scale"}),
)
FOLDED_ATTENTION_SCALE = Rewrite(
    name="attention scale folded into the queries",
    why="what multiplies the scores in place of 1/√head_dim multiplies the queries",
    applies=any_layer(lambda layer: _odd_scale(layer.mixer)),
    apply=lambda model: with_score_scale(model, lambda mixer: mixer.head_dim**-0.5),
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Norm),
    expresses=ATTENTION | NORM | {"Attention.scale", "Attention.rope=None", "Attention.softcap"},
    removes=frozenset({"Attention.scale"}),
)
SCALE_REWRITES = (FOLDED_EMBEDDING_SCALE, FOLDED_LOGIT_SCALE, FOLDED_RESIDUAL_SCALE, FOLDED_ATTENTION_SCALE)


def _untie(model: Model) -> Model:
    tensors = {**model.tensors, "output": model.tensors["embedding"]}
    return replace(model, spec=replace(model.spec, tied=False), tensors=tensors)


UNTIED_OUTPUT = Rewrite(
    name="output written out",
    why="the embedding, which is also the output projection, is stored a second time",
    applies=lambda spec: spec.tied,
    apply=_untie,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec,),
    expresses=MODEL | ENDS,
)
