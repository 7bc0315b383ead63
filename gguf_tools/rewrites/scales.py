"""Exact rewrites of the embedding scale, the logit scale, and a tied output projection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gguf_tools.model.spec import Model, ModelSpec, Norm
from gguf_tools.rewrites.base import MODEL, NORM, Rewrite
from gguf_tools.tensors.views import Mapped, scaled
from quant.encode import FloatArray


def _fold_embedding_scale(model: Model) -> Model:
    embedding = model.tensors["embedding"]
    tensors = {**model.tensors, "embedding": scaled(embedding, model.spec.embedding_scale)}
    if model.spec.tied:
        tensors["output"] = embedding
    return replace(model, spec=replace(model.spec, embedding_scale=1.0, tied=False), tensors=tensors)


def _fold_logit_scale(model: Model) -> Model:
    norm, scale = model.spec.output_norm, model.spec.logit_scale

    def function(x: FloatArray, _: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return (x.astype(np.float64) + norm.offset) * scale

    weight = Mapped(model.tensors["output_norm"], function, f"× {scale:g}")
    spec = replace(model.spec, logit_scale=1.0, output_norm=Norm(norm.eps))
    return replace(model, spec=spec, tensors={**model.tensors, "output_norm": weight})


FOLDED_EMBEDDING_SCALE = Rewrite(
    name="embedding scale folded into the embeddings",
    why="what multiplies embeddings on their way in multiplies the table; an output tied to it is written out first",
    applies=lambda spec: spec.embedding_scale != 1.0,
    apply=_fold_embedding_scale,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec,),
    expresses=MODEL,
)
FOLDED_LOGIT_SCALE = Rewrite(
    name="logit scale folded into the final norm",
    why="what multiplies the logits multiplies the final norm's weights",
    applies=lambda spec: spec.logit_scale != 1.0,
    apply=_fold_logit_scale,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec, Norm),
    expresses=MODEL | NORM,
)
SCALE_REWRITES = (FOLDED_EMBEDDING_SCALE, FOLDED_LOGIT_SCALE)


def _untie(model: Model) -> Model:
    tensors = {**model.tensors, "output": model.tensors["embedding"]}
    return replace(model, spec=replace(model.spec, tied=False), tensors=tensors)


UNTIED_OUTPUT = Rewrite(
    name="output written out",
    why="the embedding that is also the output projection is stored a second time",
    applies=lambda spec: spec.tied,
    apply=_untie,
    linear=True,
    keeps_row_angles=True,
    parts=(ModelSpec,),
    expresses=MODEL,
)
