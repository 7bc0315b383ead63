"""Picks the cheapest exact way to a llama.cpp architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.model.spec import Model
from gguf_tools.rewrites.approximations import Approximation, LayerFit, Tokens
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.heads import FOLDED_GAIN, FOLDED_VALUE_SCALE, SHARED_HEAD_NORM
from gguf_tools.rewrites.router import UNIFORM_ROUTER_BIAS
from gguf_tools.rewrites.scales import SCALE_REWRITES
from gguf_tools.targets.base import Lowered, Target
from gguf_tools.targets.registry import all_targets, target_named

COMMON_REWRITES = (UNIFORM_ROUTER_BIAS, FOLDED_GAIN, SHARED_HEAD_NORM, FOLDED_VALUE_SCALE, *SCALE_REWRITES)
"""Rewrites that every target needs; applied before the target's own."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model becomes a file: the target, the exact rewrites applied, and the model after them.

    `extra_parameters` is what the rewrites add, `extra_cache` how many numbers more each token leaves in the cache.
    `approximation`, where the user accepted one, came before the rewrites, and `fits` is what it reached.
    """

    target: Target
    rewrites: tuple[Rewrite, ...]
    model: Model
    extra_parameters: int
    extra_cache: int = 0
    approximation: Approximation | None = None
    fits: tuple[LayerFit, ...] = ()

    def lower(self) -> Lowered:
        """The rewritten model in the target's terms."""
        return self.target.lower(self.model)


def plan(model: Model, target: str | None = None, calibration: Callable[[], Tokens] | None = None) -> Plan:
    """The cheapest exact way to a llama.cpp architecture, or to the one asked for.

    With `calibration`, which gives tokens to fit to, the nearest approximation is taken where no exact way exists.

    Cheapest is the one with the fewest extra weights; among equals the one that the family prefers most, then the one with
    the fewest rewrites. Raises UnsupportedError with what each target lacks, where none expresses the model exactly.
    """
    candidates = [target_named(target)] if target else list(all_targets())
    plans, refusals = [], []
    for candidate in candidates:
        made = _exact(candidate, model)
        lacks = candidate.lacks(made.model.spec)
        if lacks:
            refusals.append((len(lacks), f"{candidate.name} lacks {', '.join(lacks)}"))
        else:
            plans.append(made)
    if plans:
        order = {name: n for n, name in enumerate(model.preferred_targets)}
        return min(plans, key=lambda p: (p.extra_parameters, order.get(p.target.name, len(order)), len(p.rewrites)))
    offers = [
        (candidate, way) for candidate in candidates for way in candidate.approximations if _fits(candidate, way, model)
    ]
    if offers and calibration:
        candidate, way = offers[0]
        approximated, fits = way.apply(model, calibration())
        made = _exact(candidate, approximated)
        return replace(made, approximation=way, fits=fits)
    hints = "".join(f"; --allow-approximate accepts {candidate.name} with a {way.name}" for candidate, way in offers)
    raise UnsupportedError(
        f"no llama.cpp architecture expresses this {model.family} model exactly: {_listed(refusals)}{hints}"
    )


def _listed(refusals: list[tuple[int, str]]) -> str:
    """What each target lacks, those that lack least first: (number of lacks, sentence) of each."""
    return "; ".join(text for _, text in sorted(refusals))


def _exact(target: Target, model: Model) -> Plan:
    """The model after the rewrites that every target needs and those of this one; it may still have what the target lacks."""
    rewritten, applied = model, []
    for rewrite in (*COMMON_REWRITES, *target.rewrites):
        if rewrite.applies(rewritten.spec) and rewrite.suits(rewritten.spec) and rewrite.holds(rewritten):
            rewritten = rewrite.apply(rewritten)
            applied.append(rewrite)
    # What is folded away may be more than what is added.
    extra = max(0, rewritten.parameters - model.parameters)
    return Plan(
        target=target,
        rewrites=tuple(applied),
        model=rewritten,
        extra_parameters=extra,
        extra_cache=rewritten.spec.cache_width - model.spec.cache_width,
    )


def _fits(target: Target, way: Approximation, model: Model) -> bool:
    """Whether the target lacks nothing after the approximation."""
    return way.applies(model.spec) and not target.lacks(_exact(target, way.apply(model, None)[0]).model.spec)


def plan_for(model: Model, target: str) -> tuple[Plan, tuple[str, ...]]:
    """The plan for one target, and what that target lacks all the same: for files that others converted in spite of it."""
    made = _exact(target_named(target), model)
    return made, tuple(made.target.lacks(made.model.spec))
