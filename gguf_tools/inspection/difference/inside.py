"""Changes within layers that stayed: outputs multiplied by a factor, exchanged experts, and the half of another layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gguf_tools.inspection.difference.layers import ALIKE, CLEARER, LayerTensors, Source, sampled_tensor
from gguf_tools.tensors.base import Tensor

ADDED = re.compile(r"(attn_output|ssm_out|shortconv\.out_proj|ffn_down(_exps|_shexp)?)\.(weight|bias)")
"""The tensors whose product a layer adds to the residual stream."""
FEED_FORWARD = re.compile(r"ffn_(?!norm)|exp_probs")
"""How the names of a feed-forward's tensors begin; all others are those of the mixer, and norms."""
OF_EXPERTS = re.compile(r"ffn_(gate|up|down)_exps\.|ffn_gate_inp\.|exp_probs")
EXACT = 1e-3
"""Relative distance that a factor may leave; rounding to 8 bits leaves about as much."""
HALVES = {"attention": "mixer", "ffn": "feed-forward"}


@dataclass(frozen=True)
class Change:
    """What happened within a layer, in words, and the surgery that does it, "" if another layer's change does it too."""

    text: str
    op: str


def changed_inside(
    a: Mapping[int, LayerTensors], b: Mapping[int, LayerTensors], found: Mapping[int, Source | None]
) -> dict[int, Change]:
    """The change of each layer of B that has another layer's place or none, but A's layer of its number with a known change."""
    open_ones = [n for n, source in found.items() if n in a and (source is None or str(source) == f"blk.{n}")]
    made: dict[int, Change] = {}
    halves: dict[int, tuple[int, str]] = {}
    for n in open_ones:
        if {name: one.shape for name, one in a[n].items()} != {name: one.shape for name, one in b[n].items()}:
            continue
        changed = [name for name in a[n] if _distance(a[n][name], b[n][name]) > 0.0]
        if not changed:
            continue
        if change := _scaled(n, a[n], b[n], changed) or _experts(n, a[n], b[n], changed):
            made[n] = change
        elif half := _half(n, a, b[n], changed):
            halves[n] = half
    return dict(sorted((made | _of_halves(halves)).items()))


def _distance(one: Tensor, other: Tensor) -> float:
    """The distance of the weights looked at, relative to their size."""
    mine, theirs = sampled_tensor(one), sampled_tensor(other)
    gap, size = float(np.linalg.norm(mine - theirs)), float(np.linalg.norm(mine))
    return gap / size if size else gap


def _scaled(n: int, mine: LayerTensors, theirs: LayerTensors, changed: list[str]) -> Change | None:
    """One factor on all that the layer adds, or on what its mixer or its feed-forward adds."""
    if not all(ADDED.fullmatch(name) for name in changed):
        return None
    factors = []
    for name in changed:
        one, other = sampled_tensor(mine[name]), sampled_tensor(theirs[name])
        size = float(one @ one)
        factor = float(one @ other) / size if size else 1.0
        if float(np.linalg.norm(other - factor * one)) > EXACT * max(abs(factor), 1e-6) * size**0.5 + EXACT * size**0.5:
            return None
        factors.append(factor)
    factor = float(np.mean(factors))
    if max(factors) - min(factors) > EXACT * abs(factor):
        return None
    of_ffn = {bool(FEED_FORWARD.match(name)) for name in changed}
    every = {bool(FEED_FORWARD.match(name)) for name in mine if ADDED.fullmatch(name)}
    half = "" if of_ffn == every else f", only={'ffn' if True in of_ffn else 'attention'}"
    number = float(f"{factor:.4g}")
    what = f"blk.{n}" if not half else f"the {HALVES[half.removeprefix(', only=')]} of blk.{n}"
    return Change(f"what {what} adds is multiplied by {number:g}", f"scale({n}@{number!r}{half})")


def _experts(n: int, mine: LayerTensors, theirs: LayerTensors, changed: list[str]) -> Change | None:
    """Experts that are exchanged in pairs, with their router rows."""
    if not all(OF_EXPERTS.match(name) for name in changed) or "ffn_gate_inp.weight" not in changed:
        return None
    one, other = (layer["ffn_gate_inp.weight"].array().astype(np.float64) for layer in (mine, theirs))
    order = [int(np.linalg.norm(one - row, axis=1).argmin()) for row in other]
    pairs = [(e, i) for e, i in enumerate(order) if e < i and order[i] == e]
    if (
        not pairs
        or sorted(order) != list(range(len(order)))
        or 2 * len(pairs) != sum(e != i for e, i in enumerate(order))
    ):
        return None
    for name in changed:
        whole = mine[name].array()[order]
        if float(np.linalg.norm(whole - theirs[name].array())) > ALIKE * float(np.linalg.norm(whole)):
            return None
    listed = ", ".join(f"{e} and {i}" for e, i in pairs)
    return Change(
        f"experts {listed} of blk.{n} are exchanged", " + ".join(f"swap-experts({n}:{e}:{i})" for e, i in pairs)
    )


def _half(n: int, a: Mapping[int, LayerTensors], layer: LayerTensors, changed: list[str]) -> tuple[int, str] | None:
    """The layer whose mixer or feed-forward this one has, with all its matrices, and which of both that is."""
    of_ffn = any(map(FEED_FORWARD.match, changed))
    matrices = {name for name, tensor in layer.items() if len(tensor.shape) > 1}
    if {name for name in matrices if bool(FEED_FORWARD.match(name)) is of_ffn} != matrices & set(changed):
        return None
    for m, other in a.items():
        if m == n or any(name not in other or other[name].shape != layer[name].shape for name in changed):
            continue
        if all(
            _distance(other[name], layer[name]) <= min(ALIKE, CLEARER * _distance(a[n][name], layer[name]))
            for name in changed
        ):
            return m, "ffn" if of_ffn else "attention"
    return None


def _of_halves(halves: Mapping[int, tuple[int, str]]) -> dict[int, Change]:
    """The changes of layers that exchanged a half with each other; others have no surgery."""
    made = {}
    for n, (m, half) in halves.items():
        if halves.get(m) != (n, half):
            continue
        text = f"the {HALVES[half]}s of blk.{n} and blk.{m} are exchanged"
        made[n] = Change(text if n < m else "", f"swap({n}:{m}, only={half})" if n < m else "")
    return made
