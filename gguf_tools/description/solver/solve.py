"""Solves a description from golden logits, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.description.assignment import Assignment
from gguf_tools.description.choices import Choices
from gguf_tools.description.solver import moves
from gguf_tools.description.solver.engine import Engine
from gguf_tools.description.solver.evidence import Batch, Evidence
from gguf_tools.description.solver.head import Head, sampled_rows, solve_head
from gguf_tools.description.solver.pattern import MEDIUM, SHORT, changes, options, solve_pattern, unknowns
from gguf_tools.description.solver.polish import fit, nmse, snap
from gguf_tools.description.solver.search import Search
from gguf_tools.progress import StageProgress
from gguf_tools.sources.checkpoint import Checkpoint

FIRST, MORE = 1800, 400
"""Evaluations of the search on one-token prompts before scales are fitted, and after each fit."""
WORK = 3e11
"""Weights × tokens that the search on one-token prompts may multiply before scales are fitted."""
FITTED = (("embedding_scale", "eps", "router_scale"), ("embedding_scale", "residual_scale", "router_scale"))
"""Values that are fitted together: not all of them, since embeddings, residual and epsilon can be scaled without effect."""
SANE = (1e-14, 0.1)
"""Bounds of an epsilon."""
ROUNDS = 8
"""How often scales are fitted and the search goes on."""
DISCRETE = 1e-5
"""NMSE on one-token prompts below which only continuous choices and GELU's two forms can still be wrong."""
POLISHED = ("eps", "embedding_scale", "logit_scale", "logit_softcap", "router_scale", "residual_scale")


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What was found: the choices, the NMSE on the sequences seen and on the one held out (None without one).

    `stage` is empty if the logits are explained, else the stage that failed (head, one token, attention pattern), and `reason`
    says how. `open` are choices that the evidence does not tell apart, with the other values. `tested` is the number of
    positions of the longest sequence.
    """

    choices: Choices
    error: float
    held: float | None
    stage: str = ""
    reason: str = ""
    open: tuple[tuple[str, str], ...] = ()
    tested: int = 0
    evaluations: int = 0

    @property
    def solved(self) -> bool:
        """Whether the choices explain the logits."""
        return not self.stage

    @property
    def notes(self) -> list[str]:
        """What the evidence leaves open, each a sentence."""
        notes = [f"{name} is not told apart from {others}" for name, others in self.open]
        if self.solved and self.tested:
            notes.append(f"tested up to {self.tested} tokens: a window or a rope scaling beyond would not show")
        return notes

    @property
    def lines(self) -> tuple[str, ...]:
        """What was found, as comments of the description."""
        found = [f"Solved from golden logits: NMSE {self.error:.1e}."] if self.solved else ["Not solved."]
        found += [f"On a prompt that the solver did not see: {self.held:.1e}."] if self.held is not None else []
        return (*found, *(f"{note[0].upper()}{note[1:]}." for note in self.notes))

    def as_dict(self) -> dict[str, Any]:
        """The choices by name, without the places of tensors, as JSON data."""
        return {name: _plain(item) for name, item in vars(self.choices).items() if name not in ("forms", "placements")}


def solve(
    assignment: Assignment, checkpoint: Checkpoint, given: Evidence, context: int, tell: StageProgress = lambda *_: None
) -> Solution:
    """The choices under which the reference computes the golden logits, or those that come closest, with the stage that failed.

    `tell` is called with a sentence on what is being tried.
    """
    structure = assignment.structure
    rows = sampled_rows(structure.vocabulary, structure.hidden)
    begin = moves.start(assignment, structure.hidden)
    tell("output projection and final norm", 1, 1)
    head = solve_head(assignment, checkpoint, given, rows)
    if head is not None and head.problem:
        return Solution(choices=begin, error=head.span, held=None, stage="head", reason=head.problem)
    if head is not None:
        begin = _with_head(begin, head)
    solver = _Solver(Engine(assignment, checkpoint, rows, context), given, rows, tell)
    return solver.run(begin)


def difference(found: Choices, other: Choices) -> tuple[str, str]:
    """What two choices differ in: (the name with its value, the other value)."""
    for name, value in vars(found).items():
        new = getattr(other, name)
        if new == value:
            continue
        if name in ("forms", "placements"):
            return "which tensor of a shape is which", "an exchange"
        return f"{name} {_plain(value)}", str(_plain(new))
    return "", ""


def _plain(item: Any) -> Any:
    """A choice as JSON data."""
    if isinstance(item, frozenset | tuple):
        return [_plain(one) for one in (sorted(item) if isinstance(item, frozenset) else item)]
    return item if item is None or isinstance(item, bool | int | float | str) else repr(item)


def _with_head(choices: Choices, head: Head) -> Choices:
    """The choices with what the head settles; a scale of the logits near 1 is 1."""
    scale = 1.0 if abs(head.scale - 1) < 1e-3 else head.scale
    return replace(
        choices,
        output=head.output,
        final=head.final,
        offset=head.offset,
        head_offset=head.offset,
        centred=head.centred,
        logit_scale=scale,
        logit_softcap=head.softcap,
    )


class _Solver:
    """The stages after the head."""

    def __init__(self, engine: Engine, given: Evidence, rows: NDArray[np.int64], tell: StageProgress) -> None:
        self.engine, self.given, self.rows, self.tell = engine, given, rows, tell
        self.one = given.starts(rows)
        lengths = sorted({SHORT, MEDIUM, min(64, given.longest), given.longest})
        made = [given.prefixes(length, rows, 6 if length <= MEDIUM else 2) for length in lengths if length > 1]
        self.longer: list[Batch] = [batch for batch in made if batch is not None]

    def run(self, begin: Choices) -> Solution:
        """All stages."""
        found, error = self.one_token(begin)
        if error > max(DISCRETE, 10 * self.given.floor):
            return self._failed(
                found, error, "one token", "no embedding, norms, projections and feed-forward of those known fit"
            )
        if not self.longer:
            return self._solution(found, error)
        found, error = solve_pattern(self.engine, self._ties(found), self.longer, error, self.tell)
        if found.unrotated == frozenset(range(self.engine.assignment.structure.count)):
            found = replace(found, rotated=False, unrotated=frozenset(), scaling=None, second=frozenset())
        if error > max(1e-4, 10 * self.given.floor):
            text = "the layers are right on single tokens, but no rope, window, norm of q and k or scale of the scores fits"
            return self._failed(found, error, "attention pattern", text)
        found, error = self.polish(found)
        found, error = self.revise(found, error)
        found, error = self.snapped(found, error)
        if error > self.given.floor:
            return self._failed(
                found, error, "continuous values", "the closest choices leave more than the logits' own precision"
            )
        return self._solution(found, error)

    def one_token(self, begin: Choices) -> tuple[Choices, float]:
        """Search on one-token prompts, with the scales fitted where the search alone does not end."""
        slots = self.engine.assignment.structure.inside
        weights = sum(int(np.prod(slot.shape)) * len(slot.layers) for slot in slots)
        budget = int(min(FIRST, max(WORK / max(weights * len(self.one.tokens), 1), 300)))

        def told(count: int, best: float) -> None:
            if count % 20 == 0:
                self.tell(f"one-token prompts (NMSE {best:.0e}): candidate", count, budget)

        search = Search(
            lambda choices: self.engine.error(choices, self.one),
            lambda choices: moves.one_token(self.engine.assignment, choices),
            budget,
            told,
        )
        found = search.run(begin, 1e-6)
        error = search.scores[found]
        if error > 1e-6:
            found, error = self._with_scales(search, found)
        return found, error

    def _with_scales(self, search: Search, found: Choices) -> tuple[Choices, float]:
        """Fit scales on the best candidates, and search on from there."""
        stuck, best_yet = 0, search.scores[found]
        for _ in range(ROUNDS):
            ranked = sorted(search.scores, key=lambda choices: search.scores[choices])[:12]
            tries = [
                fit(lambda tried: self.engine.residual(tried, self.one), option, names, 6)
                for option in ranked
                for names in FITTED
            ]
            fits = [self._plain_scale(*one) for one in tries if SANE[0] < one[0].eps < SANE[1]]
            if not fits:
                break
            best, fitted = min(fits, key=lambda item: item[1])
            search.scores[best] = fitted
            if fitted <= 1e-6:
                return best, fitted
            search.budget = len(search.scores) + MORE
            found = search.run(best, 1e-6)
            stuck = stuck + 1 if search.scores[found] > 0.8 * best_yet else 0
            best_yet = min(best_yet, search.scores[found])
            if search.scores[found] <= 1e-6 or stuck == 3:
                break
        return found, search.scores[found]

    def _plain_scale(self, found: Choices, error: float) -> tuple[Choices, float]:
        """The same with a residual scale of 1, where embeddings and epsilon can be scaled instead, which is equal."""
        scale = found.residual_scale
        if scale == 1.0:
            return found, error
        plain = replace(
            found, residual_scale=1.0, embedding_scale=found.embedding_scale / scale, eps=found.eps / scale**2
        )
        new = self.engine.error(plain, self.one)
        return (plain, new) if new <= 2 * error and SANE[0] < plain.eps < SANE[1] else (found, error)

    def _ties(self, found: Choices) -> list[Choices]:
        """The choices, and those with another order of fused roles that one token does not tell from them."""
        error = self.engine.error(found, self.one)
        ties = [found]
        for kind, changed in moves.one_token(self.engine.assignment, found):
            if (
                kind in ("qkv", "head_dim", "form")
                and changed != found
                and self.engine.error(changed, self.one) <= 2 * error + 1e-12
            ):
                ties.append(changed)
        return ties[:4]

    def batches(self) -> list[Batch]:
        """What the continuous values are fitted to."""
        return [self.one, *self.longer[-1:]]

    def residual(self, choices: Choices) -> torch.Tensor:
        """The residuals of all these batches, one after another."""
        return torch.cat([self.engine.residual(choices, batch).flatten() for batch in self.batches()])

    def continuous(self, choices: Choices) -> list[str]:
        """The continuous choices that have an effect; the residual scale stays where it is."""
        names = [name for name in POLISHED if name != "residual_scale" or choices.residual_scale != 1.0]
        names = [name for name in names if getattr(choices, name) is not None]
        if choices.embedding_normed or choices.embedding_scale == 1.0:
            names.remove("embedding_scale")
        if choices.logit_scale == 1.0:
            names.remove("logit_scale")
        if choices.router_scale == 1.0:
            names.remove("router_scale")
        attention = any(form.mixer == "Attention" for form in choices.forms) and self.longer
        return names + (unknowns(choices) if attention else [])

    def polish(self, found: Choices) -> tuple[Choices, float]:
        """All continuous choices fitted together."""
        self.tell("continuous values", 1, 2)
        return fit(self.residual, found, self.continuous(found), 15)

    def revise(self, found: Choices, error: float) -> tuple[Choices, float]:
        """Change single discrete choices as long as that helps."""
        for _ in range(4):
            if error <= self.given.floor:
                break
            tried = [changed for _, changed in self._alternatives(found)]
            scored = sorted((nmse(self.residual(changed)), n) for n, changed in enumerate(tried))[:3]
            fits = [fit(self.residual, tried[n], self.continuous(tried[n]), 8) for _, n in scored]
            best = min(fits, key=lambda item: item[1], default=(found, error))
            if best[1] > 0.5 * error:
                break
            found, error = best
        return found, error

    def _alternatives(self, found: Choices, *, patterns: bool = True) -> list[moves.Move]:
        """Every other discrete choice that the shapes allow; with `patterns` also windows and scalings."""
        singles = [move for move in moves.one_token(self.engine.assignment, found) if move[1] != found]
        if self.longer:
            more = changes(self.engine, found, self.longer[-1]) if patterns else ()
            singles += [("pattern", option) for option in more]
            plain = [
                one
                for one in options(self.engine.assignment, found)
                if one.scale is None and one.rotated == found.rotated
            ]
            singles += [
                (
                    "pattern",
                    replace(
                        one,
                        scale=found.scale,
                        theta=found.theta,
                        window=found.window,
                        windowed=found.windowed,
                        scaling=found.scaling,
                        second=found.second,
                        unrotated=found.unrotated,
                    ),
                )
                for one in plain[:40]
            ]
        return [(kind, option) for kind, option in singles if self.engine.error(option, self.one) < 1.0]

    def snapped(self, found: Choices, error: float) -> tuple[Choices, float]:
        """The continuous choices as round numbers."""
        self.tell("continuous values", 2, 2)
        root = self.engine.assignment.structure.hidden**0.5
        named: dict[str, Sequence[float]] = {
            "embedding_scale": (1.0, root, 1 / root),
            "scale": (found.head_dim**-0.5, 1.0, 1.0 / found.head_dim),
        }
        order = [
            name
            for name in (
                "embedding_scale",
                "residual_scale",
                "logit_scale",
                "logit_softcap",
                "router_scale",
                "scale",
                "softcap",
                "theta",
                "eps",
            )
            if name in self.continuous(found)
        ]
        found, error = snap(self.residual, found, order, self.given.floor / 10, named)
        if found.scale is not None and found.scale == found.head_dim**-0.5:
            found = replace(found, scale=None)
        return found, error

    def _solution(self, found: Choices, error: float) -> Solution:
        """The solution, judged on the sequence that was held out."""
        held = self.held(found)
        stage, reason = "", ""
        if held is not None and held > max(30 * self.given.floor, 100 * error):
            length = len(self.given.sequences[self.given.held or 0])
            stage, reason = (
                "held-out prompt",
                f"the choices explain what was solved from, but not the prompt of {length} tokens held out",
            )
        return Solution(
            choices=found,
            error=error,
            held=held,
            stage=stage,
            reason=reason,
            open=self.open(found, error) if not stage else (),
            tested=self.given.longest,
            evaluations=self.engine.evaluations,
        )

    def open(self, found: Choices, error: float) -> tuple[tuple[str, str], ...]:
        """The choices whose other values explain the logits as well: within three times the error, or their precision."""
        limit = max(3 * error, self.given.floor / 10)
        notes: dict[str, set[str]] = {}
        made = self.engine.decoder(found)
        for _, other in self._alternatives(found, patterns=False):
            if self.engine.error(other, self.one) > 10 * limit or self.engine.decoder(other) == made:
                continue
            if nmse(self.residual(other)) <= limit:
                name, text = difference(found, other)
                notes.setdefault(name, set()).add(text)
        return tuple((name, ", ".join(sorted(texts))) for name, texts in notes.items())

    def held(self, found: Choices) -> float | None:
        """The NMSE on the sequence that was held out."""
        if self.given.held is None:
            return None
        n = self.given.held
        return self.engine.error(found, self.given.batch([n], len(self.given.sequences[n]), self.rows))

    def _failed(self, found: Choices, error: float, stage: str, reason: str) -> Solution:
        return Solution(
            choices=found,
            error=error,
            held=self.held(found),
            stage=stage,
            reason=reason,
            evaluations=self.engine.evaluations,
        )
