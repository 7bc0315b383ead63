"""The difference between a point of the reference and llama.cpp's tensor, and how large it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from gguf_tools.evaluation.trace.points import Doubles
from gguf_tools.reference.observe import OUTSIDE
from gguf_tools.tensors.error import ratio

EXACT = 1e-10
"""NMSE up to which float32 sums in llama.cpp explain a point; 1e-13 is typical, and 1e-11 was the largest that was measured."""
NORMS = {False: 1e-13, True: 1e-11}
"""The same for an RMS norm, and for a layer norm (True), of which the subtraction of the mean loses digits: llama.cpp sums the
squares in double precision."""
FLOORS = {"f32": EXACT, "f16": 2e-5, "bf16": 2e-4}
"""The same for layers with weights of a type, whose products llama.cpp computes from activations rounded to that type or to 8
bits. Five times the largest that was measured."""
QUANTIZED = 1e-2
"""The floor of all other types."""
PRODUCTS = {"f32": EXACT, "f16": 1e-6, "bf16": 1e-4}
"""Floors of points that are a single product after a norm."""
QUANTIZED_PRODUCT = 1e-3
FACTOR = 20.0
"""A point is bad beyond its floor and this times what the rounding of the weights predicts."""
AFTER_NORM = ("attn.q", "attn.k", "attn.v", "attn.gate", "delta.qkv", "delta.z", "delta.beta", "delta.alpha", "conv.in")
BY_ORDER = ("moe.weights", "expert.gate", "expert.up", "expert.act", "expert.down")
"""Points that are compared only for tokens for which both sides selected the same experts in the same order."""
BY_CHOICE = ("moe.out", "ffn_out", "ffn_post_norm", "layer_out")
"""Points that are compared only for tokens for which both sides selected the same experts."""
ACTIVATED = ("ffn.act", "ffn.down_product", "ffn_out", "ffn_post_norm", "layer_out")
"""Points at and after the activation function of a dense feed-forward."""

Points = Mapping[str, Doubles]


@dataclass(frozen=True, kw_only=True)
class Error:
    """NMSE = Σ(b - a)² / Σa² of llama.cpp's values b against the reference's a, largest |b - a|, cosine of both, and where the
    difference is largest: position of the token, and channel. `tokens` are the tokens compared."""

    nmse: float
    largest: float = 0.0
    cosine: float = 1.0
    position: int = 0
    channel: int = 0
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class PointError:
    """The errors of one point of layer `layer` (None outside the layers).

    `local` is with the reference fed with llama.cpp's own input of the layer, `whole` from the tokens on. `predicted` is the
    NMSE that rounding the weights to the file's types causes locally, and `tolerance` the largest local NMSE that counts as
    explained. `own` is the local NMSE with the file's own weights. `tensor` is the name of llama.cpp's tensor.
    """

    layer: int | None
    point: str
    tensor: str
    local: Error
    whole: Error
    tolerance: float
    predicted: float = 0.0
    own: float | None = None

    @property
    def bad(self) -> bool:
        """Whether the local error is not explained."""
        return not self.local.nmse <= self.tolerance

    @property
    def name(self) -> str:
        """The point with its layer, for reports."""
        return self.point if self.layer is None else f"layer {self.layer} {self.point}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; infinite errors become None."""
        return {
            "layer": self.layer,
            "point": self.point,
            "tensor": self.tensor,
            "nmse": _finite(self.local.nmse),
            "max_abs_diff": _finite(self.local.largest),
            "cosine": _finite(self.local.cosine),
            "position": self.local.position,
            "channel": self.local.channel,
            "tokens": self.local.tokens,
            "end_to_end": _finite(self.whole.nmse),
            "predicted": _finite(self.predicted),
            "tolerance": self.tolerance,
            "own": None if self.own is None else _finite(self.own),
            "bad": self.bad,
        }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def error(reference: Doubles, found: Doubles, mask: Doubles | None = None) -> Error:
    """The error of `found` against `reference`, both (tokens, width), over the tokens in the boolean `mask`.

    A reference of zeros allows nothing but zeros.
    """
    rows = np.arange(len(reference)) if mask is None else np.flatnonzero(mask)
    a, b = reference[rows], found[rows]
    if not a.size:
        return Error(nmse=0.0, tokens=0)
    if not np.isfinite(b).all():
        row, channel = np.argwhere(~np.isfinite(b))[0]
        return Error(nmse=inf, largest=inf, cosine=0.0, position=int(rows[row]), channel=int(channel), tokens=len(rows))
    gaps = np.abs(b - a)
    squares, size = float(np.square(gaps).sum()), float(np.square(a).sum())
    row, channel = np.unravel_index(int(gaps.argmax()), gaps.shape)
    length = float(np.sqrt(size * np.square(b).sum()))
    return Error(
        nmse=ratio(squares, size),
        largest=float(gaps.max()),
        cosine=float((a * b).sum()) / length if length else 1.0,
        position=int(rows[row]),
        channel=int(channel),
        tokens=len(rows),
    )


def left_error(reference: Doubles, found: Doubles, mask: Doubles | None = None) -> float:
    """The NMSE of `error` that a fault in the reference leaves; values that are not finite on both sides count as equal."""
    both = ~np.isfinite(reference) & ~np.isfinite(found)
    if both.any():
        reference, found = np.where(both, 0.0, reference), np.where(both, 0.0, found)
    return error(reference, found, mask).nmse if np.isfinite(reference).all() else inf


def mask_for(point: str, reference: Points, found: Points) -> Doubles | None:
    """The tokens for which the point can be compared: those whose experts are the same on both sides; None for all."""
    if point not in BY_ORDER and point not in BY_CHOICE:
        return None
    mine, theirs = reference.get("moe.chosen"), found.get("moe.chosen")
    if mine is None or theirs is None:
        return None
    if point in BY_CHOICE:
        mine, theirs = np.sort(mine, axis=1), np.sort(theirs, axis=1)
    return np.asarray((mine == theirs).all(axis=1))


def chosen_error(measure: Doubles, mine: Doubles, theirs: Doubles, noise: float) -> Error:
    """The share of tokens for which llama.cpp selected other experts than the reference beyond a tie.

    `measure` is what experts are selected by, (tokens, experts), and `noise` its standard error: a selection whose sum of it is
    within eight standard errors is a tie.
    """
    scores = [np.take_along_axis(measure, chosen.astype(np.int64), axis=1).sum(axis=1) for chosen in (mine, theirs)]
    unlike = (np.sort(mine, axis=1) != np.sort(theirs, axis=1)).any(axis=1)
    wrong = unlike & (np.abs(scores[0] - scores[1]) > 8.0 * noise * np.sqrt(mine.shape[1]) + 1e-6 * np.abs(scores[0]))
    first = int(np.argmax(wrong)) if wrong.any() else 0
    share = float(wrong.mean())
    return Error(nmse=share, largest=share, cosine=1.0 - share, position=first, tokens=len(mine))


def floor_of(n: int, point: str, types: Mapping[int, str], gelu: float, *, centred: bool = False) -> float:
    """The NMSE that llama.cpp's arithmetic explains at a point; `types` has the coarsest type of each layer's matrices.

    `gelu` is the target's bound for its activation function, where that is coarser than float32, and `centred` says that the
    norms are layer norms.
    """
    kind = types.get(n, "f32")
    if point in ("embedding", "mixer_norm", "final_norm"):
        return NORMS[centred]
    if point == "moe.chosen":
        return 0.0
    more = gelu if point in ACTIVATED else 0.0
    if point.removesuffix("_product") in AFTER_NORM or (n == OUTSIDE and point == "logits"):
        return PRODUCTS.get(kind, QUANTIZED_PRODUCT) + more
    return FLOORS.get(kind, QUANTIZED) + more
