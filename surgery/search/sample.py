"""Recipes drawn by Optuna's tree-structured Parzen estimator (TPE, Bergstra et al. 2011), which learns from results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_tools.errors import InputError
from surgery.ops import Op
from surgery.ops.blends import Interpolate, Merge, Scale
from surgery.ops.copies import Attenuate, Bridge, Duplicate, Repeat, Triple
from surgery.ops.order import Cycle, Delete, Move, Reverse, Swap
from surgery.recipe import Recipe
from surgery.search.space import Candidate, Space

if TYPE_CHECKING:
    import optuna

MOST_OPS = 3
"""Ops of a sampled recipe, at most."""
SAMPLED = (
    "attenuate",
    "bridge",
    "cycle",
    "delete",
    "duplicate",
    "interpolate",
    "merge",
    "move",
    "repeat",
    "reverse",
    "scale",
    "swap",
    "triple",
)
"""The ops that are drawn. `path` gives no stack that these do not give; `graft` needs another model; experts are left out of all
layers by `single`."""


def drawn(trial: optuna.Trial, space: Space) -> Candidate | None:
    """A recipe of one to three ops, drawn with the trial's sampler; None where an op does not fit the stack before it."""
    recipe, stack = Recipe(), Recipe().apply(space.count)
    kinds = [name for name in SAMPLED if name in space.kinds]
    for n in range(trial.suggest_int("ops", 1, MOST_OPS)):
        op = _op(trial, space, kinds, n)
        try:
            stack = op.apply(stack)
        except InputError:
            return None
        recipe = recipe.then(Recipe((op,)))
    return Candidate(recipe, stack)


def _op(trial: optuna.Trial, space: Space, kinds: list[str], n: int) -> Op:
    """Op number n of a recipe."""
    kind = trial.suggest_categorical(f"op {n}", kinds)
    first = trial.suggest_int(f"layer {n}", space.first, space.last)
    if kind == "duplicate":
        return Duplicate(first)
    if kind == "triple":
        return Triple(first)
    if kind == "attenuate":
        return Attenuate(None)
    if kind == "scale":
        return Scale((first, first), trial.suggest_categorical(f"factor {n}", space.factors))
    if kind == "bridge":
        return Bridge(first, trial.suggest_int(f"after {n}", space.first, space.last))
    if kind in ("move", "swap"):
        other = trial.suggest_int(f"other {n}", space.first, space.last)
        return Move(first, other) if kind == "move" else Swap(((first, other),))
    if kind in ("interpolate", "merge"):
        other = first + trial.suggest_int(f"distance {n}", 1, space.reach)
        alpha = trial.suggest_categorical(f"alpha {n}", space.alphas)
        return Merge(first, other) if kind == "merge" else Interpolate(first=first, second=other, alpha=alpha)
    block = (first, first + trial.suggest_int(f"length {n}", 1, 4) - 1)
    if kind == "delete":
        return Delete((block,))
    if kind == "repeat":
        return Repeat(block, space.times)
    return Reverse(block) if kind == "reverse" else Cycle(block, 1)
