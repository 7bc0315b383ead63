"""The one-token stage: a best-first search over discrete choices, in turn with fits of the scales of its best candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gguf_tools.description.choices import Choices, with_numbers
from gguf_tools.description.solver import moves
from gguf_tools.description.solver.engine import Engine
from gguf_tools.description.solver.evidence import Batch
from gguf_tools.description.solver.polish import fit
from gguf_tools.description.solver.search import Search
from gguf_tools.progress import StageProgress

Fitted = tuple[Choices, float]
"""Choices with the NMSE that they leave."""
FIRST, MORE = 1000, 400
"""Evaluations of the search before all forms are tried, with all of them, and in each round after a fit."""
PATIENCE = 150
"""Evaluations without a better candidate after which scales are fitted."""
SCALES = range(-4, 9)
"""Powers of 2 that the embeddings are multiplied by where no usual scale fits."""
CANDIDATES, BEST = 8, 3
"""Candidates whose scales are fitted briefly, and those of them that are fitted to the end."""
WORK = 3e11
"""Weights × tokens that the search on one-token prompts may multiply before all forms are tried."""
FITTED = (("embedding_scale", "eps", "router_scale"), ("embedding_scale", "residual_scale", "router_scale"))
"""Values that are fitted together: not all of them, since embeddings, residual and epsilon can be scaled without effect."""
SANE = (1e-14, 0.1)
"""Bounds of an epsilon."""
ROUNDS, STUCK = 16, 3
"""How often scales are fitted and the search goes on, at most, and without a better candidate."""


def search_scales(
    engine: Engine, batch: Batch, goal: float, begin: Sequence[Choices], tell: StageProgress = lambda *_: None
) -> Fitted:
    """The choices, searched from those of `begin` on, that explain one-token prompts best, with the NMSE.

    The first of `begin` is searched from alone; where it does not lead to the goal, all forms are, at last with other scales of
    the embeddings. Whenever the search gets no further, scales are fitted to its best candidates.
    """
    slots = engine.assignment.structure.inside
    weights = sum(int(np.prod(slot.shape)) * len(slot.layers) for slot in slots)
    budget = int(min(FIRST, max(WORK / max(weights * len(batch.tokens), 1), 300)))

    def told(count: int, best: float) -> None:
        if count % 20 == 0:
            tell(f"one-token prompts (NMSE {best:.0e}): candidate", count, max(search.budget, count))

    def plain(choices: Choices) -> Sequence[moves.Move]:
        return tuple(moves.one_token(engine.assignment, choices))

    # With multipliers, even the right structure leaves much before they are fitted.
    patience = PATIENCE // 3 if begin[0].multipliers else PATIENCE
    search = Search(lambda choices: engine.error(choices, batch), plain, budget, patience, told)
    search.add(begin[0])
    if _alternated(engine, batch, goal, search, stuck=1):
        return search.best, search.scores[search.best]
    if len(begin) > 1:
        search.turns, search.budget = True, len(search.scores) + budget
        for choices in begin:
            search.add(choices)
        if _alternated(engine, batch, goal, search, stuck=1):
            return search.best, search.scores[search.best]
    # What was fitted may lie in a valley of its own: begin again from what was not, with other scales of the embeddings.
    usual = moves.embedding_scales(engine.assignment)
    again = replace(search, moves=lambda choices: (*plain(choices), *moves.scalings(choices)), scores={}, queues={})
    for choices, score in search.scores.items():
        if choices.embedding_scale in usual and choices.residual_scale == choices.router_scale == 1.0:
            again.add(choices, score)
    for choices in begin:
        for power in SCALES:
            again.add(replace(choices, embedding_scale=2.0**power))
    more = MORE * budget // FIRST
    again.budget, again.patience = len(again.scores) + ROUNDS * more, more
    _alternated(engine, batch, goal, again, stuck=STUCK)
    return min(((one.best, one.scores[one.best]) for one in (search, again)), key=lambda item: item[1])


def _alternated(engine: Engine, batch: Batch, goal: float, search: Search, stuck: int) -> bool:
    """Search and fit in turn until the goal is reached (True), the budget is spent, or `stuck` rounds gave nothing better."""
    failed = 0
    while failed < stuck:
        before = search.scores[search.best]
        found = search.run(goal)
        if search.scores[found] > goal:
            for best, fitted in _fits(engine, batch, search):
                search.add(best, fitted)
        if search.scores[search.best] <= goal:
            return True
        failed = failed + 1 if search.scores[search.best] > 0.8 * before else 0
        if len(search.scores) >= search.budget:
            break
    return False


def _fits(engine: Engine, batch: Batch, search: Search) -> list[Fitted]:
    """The best candidates that differ in more than scales, with scales fitted: first briefly, then the best of them."""
    different: dict[Choices, Choices] = {}
    possible = [choices for choices, score in search.scores.items() if score < float("inf")]
    for choices in sorted(possible, key=lambda choices: search.scores[choices]):
        plain = dict.fromkeys((*FITTED[0], *FITTED[1], *dict(choices.multipliers)), 1.0)
        alike = with_numbers(choices, plain)
        different.setdefault(alike, choices)
        if len(different) == CANDIDATES:
            break
    scaled = [unnormed(engine, batch, one) for one in [*different.values()][:BEST] if one.embedding_normed]
    brief = [fit_batch(engine, batch, one, _names(one)[0], 2) for one in (*different.values(), *scaled)]
    brief.sort(key=lambda item: item[1])
    tries = [fit_batch(engine, batch, one, names, 6) for one, _ in brief[:BEST] for names in _names(one)]
    return [_plain_scale(engine, batch, *one) for one in tries if SANE[0] < one[0].eps < SANE[1]]


def unnormed(engine: Engine, batch: Batch, choices: Choices) -> Choices:
    """The choices without a norm of the embeddings, with the factor on them in its place that comes nearest.

    A norm of embeddings of nearly the same size acts nearly like a factor on them, so that one hides the other.
    """
    plain = replace(choices, embedding_normed=False, residual_scale=1.0)
    scaled = [replace(plain, embedding_scale=2.0 ** (power / 2)) for power in range(2 * SCALES[0], 2 * SCALES[-1] + 1)]
    return min(scaled, key=lambda one: engine.error(one, batch))


def _names(choices: Choices) -> list[tuple[str, ...]]:
    """The sets of values that are fitted together.

    Multipliers of what layers add act together as the scale of the embeddings does, which is not fitted with them, so that the
    fit has one solution.
    """
    several = tuple(role for role, _ in choices.multipliers)
    return [several, (*several, "eps")] if several else [*FITTED]


def fit_batch(engine: Engine, batch: Batch, choices: Choices, names: Sequence[str], iterations: int) -> Fitted:
    """The choices with the values of `names` fitted to a batch."""
    return fit(lambda tried: engine.residual(tried, batch), choices, names, iterations)


def _plain_scale(engine: Engine, batch: Batch, found: Choices, error: float) -> Fitted:
    """The same with a residual scale of 1, where embeddings and epsilon can be scaled instead, which is equal."""
    scale = found.residual_scale
    if scale == 1.0:
        return found, error
    plain = replace(found, residual_scale=1.0, embedding_scale=found.embedding_scale / scale, eps=found.eps / scale**2)
    new = engine.error(plain, batch)
    return (plain, new) if new <= 2 * error and SANE[0] < plain.eps < SANE[1] else (found, error)
