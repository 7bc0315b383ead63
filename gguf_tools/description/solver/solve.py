"""Solves a description from golden logits, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.description.assignment import Assignment
from gguf_tools.description.choices import Choices
from gguf_tools.description.solver import moves
from gguf_tools.description.solver.engine import Engine
from gguf_tools.description.solver.evidence import Batch, Evidence
from gguf_tools.description.solver.head import Head, sampled_rows, solve_head
from gguf_tools.description.solver.pattern import MEDIUM, SHORT, changes, options, promising, solve_pattern, unknowns
from gguf_tools.description.solver.polish import fit, nmse, snap
from gguf_tools.description.solver.search import Search
from gguf_tools.description.solver.solution import Solution, difference
from gguf_tools.progress import StageProgress
from gguf_tools.sources.checkpoint import Checkpoint

FIRST, MORE = 1000, 400
"""Evaluations of the search on one-token prompts with usual scales, and before each fit of scales."""
SCALES = range(-4, 9)
"""Powers of 2 that the embeddings are multiplied by where no usual scale fits."""
CANDIDATES = 12
"""Candidates whose scales are fitted."""
WORK = 3e11
"""Weights × tokens that the search on one-token prompts may multiply before scales are fitted."""
FITTED = (("embedding_scale", "eps", "router_scale"), ("embedding_scale", "residual_scale", "router_scale"))
"""Values that are fitted together: not all of them, since embeddings, residual and epsilon can be scaled without effect."""
SANE = (1e-14, 0.1)
"""Bounds of an epsilon."""
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
"""Usual epsilons, and nearly none."""
FLIPS = 30
"""How much larger the error of logits in 16 bits may be where rounding changes which experts are selected."""
ROUNDS = 8
"""How often scales are fitted and the search goes on."""
DISCRETE = 1e-5
"""NMSE on one-token prompts below which only continuous choices and GELU's two forms can still be wrong."""
SNAPPED = (
    *("embedding_scale", "residual_scale", "logit_scale", "logit_softcap", "router_scale"),
    *("scale", "softcap", "alibi", "theta", "eps"),
)
"""Continuous choices in the order in which they are rounded."""
POLISHED = ("eps", "embedding_scale", "logit_scale", "logit_softcap", "router_scale", "residual_scale")


def solve(
    assignment: Assignment, checkpoint: Checkpoint, given: Evidence, context: int, tell: StageProgress = lambda *_: None
) -> Solution:
    """The choices under which the reference computes the golden logits, or those that come closest, with the stage that failed.

    `tell` is called with a sentence on what is being tried.
    """
    structure = assignment.structure
    rows = sampled_rows(structure.vocabulary, structure.hidden)
    begin = moves.starts(assignment)
    tell("output projection and final norm", 1, 1)
    head = solve_head(assignment, checkpoint, given, rows)
    if head is not None and head.problem:
        return Solution(choices=begin[0], error=head.span, held=None, stage="head", reason=head.problem)
    if head is not None:
        begin = [_with_head(choices, head) for choices in begin]
    solver = _Solver(Engine(assignment, checkpoint, rows, context), given, rows, tell)
    return solver.run(begin)


def _near(number: float) -> float:
    """The number with three digits where that is nearly the same."""
    rounded = float(f"{number:.2e}")
    return rounded if abs(rounded - number) < 1e-3 * abs(number) else number


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

    def run(self, begin: Sequence[Choices]) -> Solution:
        """All stages, from the first guesses on."""
        found, error = self.one_token(begin)
        if error > max(DISCRETE, 10 * self.given.floor):
            return self._failed(
                found, error, "one token", "no embedding, norms, projections and feed-forward of those known fit"
            )
        found, error = self.settled(found)
        if not self.longer:
            return self._solution(found, error)
        found, error = solve_pattern(
            self.engine, self._ties(found), self.longer, error, coarse=self.given.coarse, tell=self.tell
        )
        if found.unrotated == frozenset(range(self.engine.assignment.structure.count)):
            found = replace(found, rotated=False, unrotated=frozenset(), scaling=None, second=frozenset())
        if error > max(1e-4, 10 * self.given.floor):
            text = "the layers are right on single tokens, but no rope, window, norm of q and k or scale of the scores fits"
            return self._failed(found, error, "attention pattern", text)
        found, error = self.polish(found)
        found, error = self.revise(found, error)
        found, error = self.snapped(found, error)
        if error > self.limit(found):
            return self._failed(
                found, error, "continuous values", "the closest choices leave more than the logits' own precision"
            )
        return self._solution(found, error)

    def limit(self, found: Choices) -> float:
        """The NMSE below which the logits are explained; rounding to 16 bits selects other experts now and then."""
        flips = self.given.coarse and any(form.ffn == "MoE" for form in found.forms)
        return self.given.floor * (FLIPS if flips else 1)

    def one_token(self, begin: Sequence[Choices]) -> tuple[Choices, float]:
        """Search on one-token prompts, with the scales fitted where the search alone does not end."""
        slots = self.engine.assignment.structure.inside
        weights = sum(int(np.prod(slot.shape)) * len(slot.layers) for slot in slots)
        budget = int(min(FIRST, max(WORK / max(weights * len(self.one.tokens), 1), 300)))

        def told(count: int, best: float) -> None:
            if count % 20 == 0:
                self.tell(f"one-token prompts (NMSE {best:.0e}): candidate", count, max(budget, count))

        search = Search(
            lambda choices: self.engine.error(choices, self.one),
            lambda choices: moves.one_token(self.engine.assignment, choices),
            budget,
            told,
        )
        search.add(begin[0])
        found = search.run(self.given.goal)
        if search.scores[found] > self.given.goal and len(begin) > 1:
            search.turns, search.budget = True, len(search.scores) + budget
            for choices in begin:
                search.add(choices)
            found = search.run(self.given.goal)
        error = search.scores[found]
        return (found, error) if error <= self.given.goal else self._with_scales(search, begin)

    def _with_scales(self, search: Search, begin: Sequence[Choices]) -> tuple[Choices, float]:
        """Search on with other scales of the embeddings; fit scales on the best candidates, and go on from there."""
        plain = search.moves
        search.moves = lambda choices: (*plain(choices), *moves.scalings(choices))
        for choices in begin:
            for power in SCALES:
                search.add(replace(choices, embedding_scale=2.0**power))
        stuck, before = 0, search.scores[search.best]
        for _ in range(ROUNDS):
            search.budget = len(search.scores) + MORE
            found = search.run(self.given.goal)
            if search.scores[found] > self.given.goal:
                for best, fitted in self._fits(search):
                    search.add(best, fitted)
            found = search.best
            stuck = stuck + 1 if search.scores[found] > 0.8 * before else 0
            before = min(before, search.scores[found])
            if search.scores[found] <= self.given.goal or stuck == 3:
                break
        return search.best, search.scores[search.best]

    def _fits(self, search: Search) -> list[tuple[Choices, float]]:
        """The best candidates that differ in more than scales, with scales fitted: first briefly, then the best of them."""
        different: dict[Choices, Choices] = {}
        possible = [choices for choices, score in search.scores.items() if score < float("inf")]
        for choices in sorted(possible, key=lambda choices: search.scores[choices]):
            different.setdefault(
                replace(choices, embedding_scale=1.0, residual_scale=1.0, router_scale=1.0, eps=1.0), choices
            )
            if len(different) == CANDIDATES:
                break
        brief = [self._fit(choices, FITTED[0], 2) for choices in different.values()]
        brief.sort(key=lambda item: item[1])
        tries = [self._fit(choices, names, 6) for choices, _ in brief[:3] for names in FITTED]
        return [self._plain_scale(*one) for one in tries if SANE[0] < one[0].eps < SANE[1]]

    def _fit(self, choices: Choices, names: Sequence[str], iterations: int) -> tuple[Choices, float]:
        return fit(lambda tried: self.engine.residual(tried, self.one), choices, names, iterations)

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

    def settled(self, found: Choices) -> tuple[Choices, float]:
        """Epsilon, scales and the form of GELU, which show least, from one-token prompts: what the pattern leaves is its own."""
        found, error = self._small(found)
        singles = [move for move in moves.one_token(self.engine.assignment, found) if move[1] != found]
        if self.given.coarse:
            best = min((one for _, one in singles), key=lambda one: self.engine.error(one, self.one))
            if self.engine.error(best, self.one) < 0.7 * error:
                found, error = self._small(best)
        elif error > self.given.floor / 10:
            others = [one for kind, one in singles if kind == "activation"]
            fits = [self._small(one) for one in others if self.engine.error(one, self.one) < DISCRETE]
            found, error = min([(found, error), *fits], key=lambda item: item[1])
        return found, error

    def _small(self, found: Choices) -> tuple[Choices, float]:
        """Epsilon and scales fitted to one-token prompts, from those found and from usual ones.

        An epsilon that came out too small has no slope any more, and scales that make up for it hide the right one.
        """
        names = [name for name in self.continuous(found) if name in POLISHED]
        rounded = replace(
            found,
            embedding_scale=_near(found.embedding_scale),
            router_scale=_near(found.router_scale),
            residual_scale=_near(found.residual_scale),
        )
        epsilons = EPSILONS if "eps" in names else EPSILONS[:1]
        usual = min((replace(rounded, eps=eps) for eps in epsilons), key=lambda one: self.engine.error(one, self.one))
        return min((self._fit(one, names, 8) for one in (found, usual)), key=lambda item: item[1])

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
        names = [name for name in names if name != "eps" or not self.given.coarse]  # rounding hides it
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
            tried = [one for _, one in self._alternatives(found) if self.engine.error(one, self.one) < 1.0]
            scored = [(nmse(self.residual(changed)), changed) for changed in tried]
            fits = [fit(self.residual, one, self.continuous(one), 8) for one in promising(scored, error, found)]
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
        return singles

    def snapped(self, found: Choices, error: float) -> tuple[Choices, float]:
        """The continuous choices as round numbers."""
        self.tell("continuous values", 2, 2)
        root = self.engine.assignment.structure.hidden**0.5
        named: dict[str, Sequence[float]] = {
            "embedding_scale": (1.0, root, 1 / root),
            "scale": (found.head_dim**-0.5, 1.0, 1.0 / found.head_dim),
        }
        order = [name for name in SNAPPED if name in self.continuous(found)]
        coarse, floor = self.given.coarse, self.given.floor / 10
        found, _ = snap(self.residual, found, order, lambda best: 1.1 * best if coarse else max(2 * best, floor), named)
        error = nmse(self.residual(found))
        if found.scale is not None and found.scale == found.head_dim**-0.5:
            found = replace(found, scale=None)
        return found, error

    def _solution(self, found: Choices, error: float) -> Solution:
        """The solution, judged on the sequence that was held out."""
        held = self.held(found)
        stage, reason = "", ""
        if held is not None and held > max(30 * self.limit(found), 100 * error):
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
            rounded=self.given.dtype if self.given.coarse else "",
        )

    def open(self, found: Choices, error: float) -> tuple[tuple[str, str], ...]:
        """The choices whose other values explain the logits as well: within three times the error, or their precision."""
        limit = 2 * error if self.given.coarse else max(3 * error, self.given.floor / 10)
        notes: dict[str, set[str]] = {}
        made = self.engine.decoder(found)
        cheap = [self.one, *self.longer[:1]]
        others = [other for _, other in self._alternatives(found, patterns=False)]
        if self.given.coarse:
            others += [replace(found, eps=eps) for eps in EPSILONS]
        for other in others:
            if self.engine.decoder(other) == made or any(
                self.engine.error(other, batch) > 10 * limit for batch in cheap
            ):
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
