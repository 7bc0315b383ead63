"""Finds the cause of the first bad point by trying: the reference is run again with each likely fault, and the one that gives
what llama.cpp computed is named, with the error that it leaves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from gguf_tools.evaluation.trace.compare import PointError, Points, error, floor_of, mask_for
from gguf_tools.evaluation.trace.hypotheses import EPSILONS, Hypothesis, hypotheses
from gguf_tools.evaluation.trace.passes import Passes, errors_of
from gguf_tools.evaluation.trace.points import Doubles
from gguf_tools.evaluation.trace.stated import stated_otherwise
from gguf_tools.evaluation.trace.tensors import told_apart
from gguf_tools.evaluation.trace.work import Work
from gguf_tools.model.spec import DeltaNet, LayerSpec, Model
from gguf_tools.reference import Reference
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.reference.weights import Weights

Where = Literal["file", "engine", "unknown"]
Named = TypeVar("Named")
ENOUGH = 1e-2
"""A fault explains a point if it leaves at most this share of its error, or nothing that is beyond the tolerance."""

NOTHING = 1e-12
"""The NMSE that float32 arithmetic leaves of a point where nothing is wrong."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What was found out about a bad point: the fault in words, the NMSE that it leaves, where the fault is, and the tensors of
    the file that feed the point.

    The fault is in the `file` if its own weights and metadata give what llama.cpp computed, else in the `engine`, or in how tinyq
    reads the file.
    """

    text: str | None
    nmse: float | None
    where: Where
    tensors: tuple[str, ...] = ()


def find_cause(work: Work, n: int, first: PointError, own: Model) -> tuple[Cause, float]:
    """The cause of the first bad point, of layer n (`OUTSIDE` for none), and the point's NMSE with the file's own weights."""
    mine = Reference(own, torch.float64)
    if n == OUTSIDE:
        return _outside(work, first, mine)
    x = work.input_of(n)
    assert x is not None
    target = _Target(work, n, first.point, x)
    left = target.left(Passes(mine, {}))
    floor = floor_of(n, first.point, work.types, work.expected.gelu)
    tried = []
    for pair in _tried(work, n, target, own, mine):
        tried.append(pair)
        if pair[1] <= NOTHING:  # of those that leave nothing, the first is named
            break
    best = min(tried, key=lambda pair: pair[1], default=None)
    # A tensor of the file leaves less than the fault in it has in words: nothing of the rounding of its weights.
    slack = 4.0 * first.predicted if best and best[0].of_file else 0.0
    cause, nmse = _named(tried, first, slack) or (None, None)
    where: Where = "file" if left <= max(floor, ENOUGH * first.local.nmse) else "engine"
    roles = (cause.role,) if cause and cause.role else feeding(first.point, work.expected.model.layer_tensors[n])
    names = tuple(dict.fromkeys(name for role in roles for name in work.expected.names(n, role)))
    return Cause(text=cause.text if cause else None, nmse=nmse, where=where, tensors=names), left


def _named(tried: Sequence[tuple[Named, float]], first: PointError, slack: float) -> tuple[Named, float] | None:
    """The first of the faults that leave about as little as the best one, or `slack`, or None if that one leaves too much."""
    best = min((nmse for _, nmse in tried), default=inf)
    error = first.local.nmse
    if best > max(first.tolerance, ENOUGH * error if error < inf else 0.0) or best > error / 2.0:
        return None
    return next(pair for pair in tried if pair[1] <= max(4.0 * best, slack, NOTHING))


def _tried(work: Work, n: int, target: _Target, own: Model, mine: Reference) -> Iterator[tuple[Hypothesis, float]]:
    """Each fault with the NMSE that it leaves at the point; those of the file's own tensors last."""
    reference = work.passes.reference
    spec, weights = reference.spec.layers[n], reference.layers[n]
    others = {m: other for m, other in enumerate(reference.layers) if m != n}
    stated = own.spec.layers[n] if n < len(own.spec.layers) else None
    for one in [*hypotheses(spec, weights, stated, others), *_of_file(spec, weights, stated, mine.layers[n], work, n)]:
        yield one, target.left(work.passes, one.spec, one.weights)


def _of_file(
    spec: LayerSpec, weights: Weights, stated: LayerSpec | None, theirs: Weights, work: Work, n: int
) -> Iterator[Hypothesis]:
    """The file's own tensors put into the source's layer, one at a time, with what tells each from the source's."""
    if stated is None:
        return
    held = weights
    if work.coarse:  # what the tensors of a file of these types should hold
        held = _as_source(spec, work.coarse.reference.spec.layers[n], work.coarse.reference.layers[n], 1.0)
    for role, tensor in _as_source(spec, stated, theirs, work.passes.query_scale.get(n, 1.0)).items():
        if (
            role in weights
            and tensor.shape == weights[role].shape
            and not torch.equal(tensor, held.get(role, weights[role]))
        ):
            names = ", ".join(work.expected.names(n, role)) or role
            text = f"{names}: {told_apart(held.get(role, weights[role]), tensor, spec, role, held)}"
            yield Hypothesis(text, spec, {**weights, role: tensor}, role, of_file=True)
    yield Hypothesis(
        "several of the layer's tensors differ from the source's",
        spec,
        {**weights, **_as_source(spec, stated, theirs, 1.0)},
        of_file=True,
    )


def _as_source(spec: LayerSpec, stated: LayerSpec, theirs: Weights, query_scale: float) -> dict[str, torch.Tensor]:
    """The file's weights in the source's form: offsets taken off norms, decays as logarithms where they can be."""
    norms, mine = stated.norms, spec.norms
    found = {}
    for role, tensor in theirs.items():
        if role in norms and role in mine:
            tensor = tensor + norms[role].offset - mine[role].offset
        if role.endswith(".decay") and (_decay_form(spec), _decay_form(stated)) == ("log", "rate"):
            if not bool((tensor < 0).all()):
                continue
            tensor = (-tensor).log()
        if role == "attn.q":
            tensor = tensor / query_scale
        found[role] = tensor
    return found


def _decay_form(spec: LayerSpec) -> str:
    """How the decay of the layer's recurrence is stored: log or rate, "" if it has none."""
    return spec.mixer.decay if isinstance(spec.mixer, DeltaNet) else spec.state_space.decay if spec.state_space else ""


class _Target:
    """What llama.cpp computed at the first bad point, and for which tokens the reference is held to it.

    The tokens are those whose experts both sides selected alike without a fault, so that a fault that changes the selection
    cannot leave out the tokens that speak against it. Where llama.cpp selects another number of experts, a fault is held to those
    that it selects alike, if they are half of the tokens or more.
    """

    def __init__(self, work: Work, n: int, point: str, x: Doubles) -> None:
        self.n, self.point, self.x, self.graph = n, point, x, work.graph
        mine = work.passes.layer(n, x)
        self.values = self._found(mine[point].shape[1])
        self.position = work.position if len(self.values) > 1 else None
        self.other_width = "moe.chosen" in mine and not self._chosen(mine)
        self.mask = self._mask(mine)

    def _chosen(self, mine: Points) -> Points:
        """llama.cpp's selection of experts, if it has as many as `mine`."""
        chosen = self.graph.values(self.n, "moe.chosen", mine["moe.chosen"].shape[1]) if "moe.chosen" in mine else None
        return {} if chosen is None else {"moe.chosen": chosen}

    def _mask(self, mine: Points) -> Doubles | None:
        mask = mask_for(self.point, mine, self._chosen(mine))
        if self.position is None:
            return mask
        at = np.asarray(np.arange(len(self.values)) == self.position)
        return at if mask is None else np.asarray(mask & at)

    def _found(self, width: int) -> Doubles:
        found = self.graph.values(self.n, self.point, width)
        assert found is not None
        return found

    def left(self, passes: Passes, spec: LayerSpec | None = None, weights: Weights | None = None) -> float:
        """The NMSE of the point with a layer's spec or weights exchanged; infinite if the layer cannot be run so."""
        try:
            points = passes.layer(self.n, self.x, spec, weights)
        except (RuntimeError, KeyError):  # torch's error for shapes that do not fit: this fault cannot be the one
            return inf
        found = points.get(self.point)
        if found is None or found.shape != self.values.shape:
            return inf
        if self.point == "moe.chosen":
            return float((np.sort(found, axis=1) != np.sort(self.values, axis=1)).any(axis=1).mean())
        mask = self._mask(points) if self.other_width else self.mask
        if self.other_width and mask is not None and 2 * mask.sum() < len(mask):
            return inf
        return error(found, self.values, mask).nmse


def _outside(work: Work, first: PointError, mine: Reference) -> tuple[Cause, float]:
    """The cause of a bad embedding, final norm or logits."""
    reference, x = work.passes.reference, work.input_of(len(work.passes.reference.spec.layers))
    changes: dict[str, Any] = {}
    spec = reference.spec
    for eps in EPSILONS:
        changes[f"epsilon of the final norm is {eps:g}, not {spec.output_norm.eps:g}"] = replace(
            spec, output_norm=replace(spec.output_norm, eps=eps)
        )
        if spec.embedding_norm:
            changes[f"epsilon of the embedding's norm is {eps:g}, not {spec.embedding_norm.eps:g}"] = replace(
                spec, embedding_norm=replace(spec.embedding_norm, eps=eps)
            )
    other = 0.0 if spec.output_norm.offset else 1.0
    changes[
        "the final norm's offset of 1 is missing" if other == 0.0 else "an offset of 1 is added to the final norm"
    ] = replace(spec, output_norm=replace(spec.output_norm, offset=other))
    if spec.embedding_scale != 1.0:
        changes["the embedding is not multiplied by its scale"] = replace(spec, embedding_scale=1.0)
    if spec.logit_scale != 1.0:
        changes["the logits are not multiplied by their scale"] = replace(spec, logit_scale=1.0)
    if spec.logit_softcap:
        changes["the logits are not capped"] = replace(spec, logit_softcap=None)

    changes |= dict(stated_otherwise(replace(spec, layers=()), replace(mine.spec, layers=())))

    def left(one: Reference) -> float:
        passes = Passes(one, {})
        points = passes.start(work.tokens) if first.point == "embedding" else passes.end(x) if x is not None else {}
        found = errors_of(passes, OUTSIDE, points, work.graph, work.position)
        return found[first.point][0].nmse if first.point in found else inf

    own = left(mine)
    tried = [
        (text, left(_with(reference, replace(changed, layers=spec.layers), reference.weights)))
        for text, changed in changes.items()
    ]
    roles = {
        "embedding": ("embedding", "positions", "embedding_norm", "embedding_norm_bias"),
        "final_norm": ("output_norm", "output_norm_bias"),
    }.get(first.point, ("output", "output_bias", "embedding"))
    for role in roles:
        if (
            role in mine.weights
            and role in reference.weights
            and mine.weights[role].shape == reference.weights[role].shape
        ):
            offset = spec.output_norm.offset if role == "output_norm" else 0.0
            tensor = mine.weights[role] - offset
            names = ", ".join(work.expected.names(OUTSIDE, role)) or role
            text = f"{names}: {told_apart(reference.weights[role], tensor, None, role)}"
            tried.append((text, left(_with(reference, spec, {**reference.weights, role: tensor}))))
    cause = _named(tried, first, 4.0 * first.predicted)
    where: Where = "file" if own <= max(first.tolerance, ENOUGH * first.local.nmse) else "engine"
    named = tuple(dict.fromkeys(name for role in roles for name in work.expected.names(OUTSIDE, role)))
    return Cause(text=cause and cause[0], nmse=cause and cause[1], where=where, tensors=named), own


def _with(reference: Reference, spec: Any, weights: Weights) -> Reference:
    """The reference with another spec and other weights outside the layers."""
    made = copy.copy(reference)
    made.spec, made.weights = spec, weights
    return made


FEEDS: Mapping[str, tuple[str, ...]] = {
    "attn.heads": ("attn.v",),
    "attn.shares": ("attn.q", "attn.k"),
    "attn.gated": ("attn.gate",),
    "attn.q_normed": ("attn.q_norm",),
    "attn.k_normed": ("attn.k_norm",),
    "attn.q_rope": (),
    "attn.k_rope": (),
    "mixer_out": ("attn.o", "delta.o", "conv.o", "ssm.o"),
    "mixer_residual": ("attn.o", "delta.o", "conv.o", "ssm.o"),
    "delta.qkv": ("delta.q", "delta.k", "delta.v"),
    "delta.conv_act": ("delta.conv",),
    "delta.step": ("delta.dt_bias",),
    "delta.log_decay": ("delta.decay",),
    "delta.gated": ("delta.norm",),
    "ssm.in": ("ssm.z", "ssm.x", "ssm.b", "ssm.c", "ssm.step"),
    "ssm.dt": ("ssm.dt_bias",),
    "ssm.scan": ("ssm.decay",),
    "ssm.state": ("ssm.decay",),
    "ssm.out": ("ssm.skip",),
    "ssm.gated": ("ssm.norm",),
    "conv.conv": ("conv.kernel",),
    "ffn_out": ("ffn.down", "moe.down", "shared.down"),
    "ffn.act": ("ffn.gate", "ffn.up"),
    "moe.logits": ("moe.router",),
    "moe.chosen": ("moe.router_bias",),
    "moe.weights": (),
    "moe.out": ("moe.down",),
    "shared.act": (),
}
"""The weights that feed a point, where they are not those of its own name."""


def feeding(point: str, tensors: Mapping[str, object]) -> tuple[str, ...]:
    """The roles of a layer that feed a point directly."""
    name = point.removesuffix("_product").replace("expert.", "moe.")
    roles = FEEDS.get(name, (name, f"{name}_bias"))
    return tuple(role for role in roles if role in tensors)
