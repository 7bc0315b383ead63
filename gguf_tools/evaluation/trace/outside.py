"""The cause of a bad embedding, final norm or logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import torch

from gguf_tools.evaluation.trace.compare import PointError, left_error
from gguf_tools.evaluation.trace.hypotheses import EPSILONS
from gguf_tools.evaluation.trace.in_file import of_ends
from gguf_tools.evaluation.trace.passes import Passes
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.model.spec import ModelSpec, Norm
from gguf_tools.reference import Reference
from gguf_tools.reference.observe import OUTSIDE

ROLES = {
    "embedding": ("embedding", "positions", "embedding_norm", "embedding_norm_bias"),
    "final_norm": ("output_norm", "output_norm_bias"),
}
LAST = ("output", "output_bias", "embedding")
"""The weights that feed the logits."""

Tried = tuple[str, str, Reference]
"""A fault in words, the role of the weights that it is about, if any, and the reference with it."""


def faults(work: Work) -> Iterator[Tried]:
    """The faults outside the layers to try."""
    reference = work.passes.reference
    spec, weights = reference.spec, reference.weights
    for role, norm in (("output_norm", spec.output_norm), ("embedding_norm", spec.embedding_norm)):
        if norm:
            for text, changed in _of_norm(role, norm):
                made: dict[str, Any] = {role: changed}
                yield text, "", reference.changed(replace(spec, **made), weights)
    for text, other in _of_spec(spec):
        yield text, "", reference.changed(other, weights)
    for role, tensor in weights.items():
        if role.endswith("_bias"):
            yield (
                f"the bias is not loaded ({role})",
                role,
                reference.changed(spec, {**weights, role: torch.zeros_like(tensor)}),
            )
    if spec.positions:
        table = weights["positions"]
        zeros = {**weights, "positions": torch.zeros_like(table)}
        yield "the learned positions are not added", "positions", reference.changed(spec, zeros)
        for shift in (1, 2, -1, -2):
            text = f"learned positions start at row {shift}, not 0"
            shifted = {**weights, "positions": table.roll(-shift, 0)}
            yield text, "positions", reference.changed(spec, shifted)
    if not spec.tied:
        swapped = {**weights, "output": weights["embedding"]}
        yield "the output matrix is the embedding", "output", reference.changed(spec, swapped)
    if work.mine:
        yield from of_ends(work, work.mine)


def _of_norm(role: str, norm: Norm) -> Iterator[tuple[str, Norm]]:
    """Other epsilons, offsets and means of a norm outside the layers."""
    name = "the final norm" if role == "output_norm" else "the embedding's norm"
    for eps in EPSILONS:
        yield f"epsilon of {name} is {eps:g}, not {norm.eps:g}", replace(norm, eps=eps)
    if norm.weighted:
        text = (
            f"the offset of {norm.offset:g} of {name} is missing"
            if norm.offset
            else f"an offset of 1 is added to {name}"
        )
        yield text, replace(norm, offset=0.0 if norm.offset else 1.0)
    yield (
        f"{name} {'does not subtract' if norm.centred else 'subtracts'} the mean",
        replace(norm, centred=not norm.centred),
    )


def _of_spec(spec: ModelSpec) -> Iterator[tuple[str, ModelSpec]]:
    """Scales, caps and norms that are left out."""
    if spec.embedding_norm:
        yield "the embedding's norm is left out", replace(spec, embedding_norm=None)
    if spec.embedding_scale != 1.0:
        yield "the embedding is not multiplied by its scale", replace(spec, embedding_scale=1.0)
    if spec.logit_scale != 1.0:
        yield "the logits are not multiplied by their scale", replace(spec, logit_scale=1.0)
        yield "the logits are divided by their scale", replace(spec, logit_scale=1.0 / spec.logit_scale)
    if spec.logit_softcap:
        yield "the logits are not capped", replace(spec, logit_softcap=None)


def left_by(work: Work, first: PointError, reference: Reference) -> float:
    """The NMSE of the first bad point against a reference with a fault; infinite if the reference cannot be run so."""
    passes = Passes(reference, {})
    try:
        if first.point == "embedding":
            points = passes.start(work.tokens)
        else:
            x = work.input_of(len(work.passes.reference.spec.layers))
            points = passes.end(x) if x is not None else {}
    except (
        RuntimeError,
        KeyError,
        ValueError,
    ):  # shapes that do not fit, or no weights: this fault cannot be the one
        return inf
    mine = points.get(first.point)
    found = None if mine is None else work.graph.values(OUTSIDE, first.point, mine.shape[1])
    if mine is None or found is None:
        return inf
    return left_error(mine, found, None if work.position is None else np.arange(len(found)) == work.position)


def feeding_outside(point: str) -> tuple[str, ...]:
    """The roles that feed a point outside the layers."""
    return ROLES.get(point, LAST)
