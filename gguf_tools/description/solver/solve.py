"""Solves a description from golden logits, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from gguf_tools.description.assignment import Assignment, NormSlots
from gguf_tools.description.choices import Choices, number
from gguf_tools.description.solver import moves, single
from gguf_tools.description.solver.engine import Engine
from gguf_tools.description.solver.evidence import Batch, Evidence
from gguf_tools.description.solver.head import Head, sampled_rows, solve_head
from gguf_tools.description.solver.pattern import MEDIUM, SHORT, changes, options, promising, solve_pattern, unknowns
from gguf_tools.description.solver.polish import fit, nmse, snap
from gguf_tools.description.solver.solution import Solution, difference
from gguf_tools.progress import StageProgress
from gguf_tools.sources.checkpoint import Checkpoint

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
"""Usual epsilons, and nearly none."""
FLIPS = 30
"""How much larger the error of logits in 16 bits may be where rounding changes which experts are selected."""
DISCRETE = 1e-5
"""NMSE on one-token prompts below which only continuous choices and GELU's two forms can still be wrong."""
NEARBY = 0.1
"""NMSE below which a candidate is fitted beside one with a smaller error."""
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
        assignment = _with_norms(assignment, head.final)
        begin = [_with_head(choices, head, assignment) for choices in begin]
    solver = _Solver(Engine(assignment, checkpoint, rows, context), given, rows, tell)
    return solver.run(begin)


def _near(number: float) -> float:
    """The number with three digits where that is nearly the same."""
    rounded = float(f"{number:.2e}")
    return rounded if abs(rounded - number) < 1e-3 * abs(number) else number


def _with_norms(assignment: Assignment, final: NormSlots) -> Assignment:
    """The assignment with this norm before the output; the other vectors outside the layers are those of another norm."""
    outside = assignment.outside
    vectors = [name for norm in outside.norms for name in (norm.weight, norm.bias) if name]
    if final in (*outside.norms, NormSlots()):
        return assignment
    rest = [name for name in vectors if name not in (final.weight, final.bias)]
    pairs = [NormSlots(*rest)] if final.bias and len(rest) == 2 else [NormSlots(name) for name in rest]
    return replace(assignment, outside=replace(outside, norms=(*pairs, final)))


def _with_head(choices: Choices, head: Head, assignment: Assignment) -> Choices:
    """The choices with what the head settles; a scale of the logits near 1 is 1."""
    scale = 1.0 if abs(head.scale - 1) < 1e-3 else head.scale
    norms = assignment.outside.norms
    return replace(
        choices,
        output=head.output,
        final=norms.index(head.final) if head.final in norms else -1,
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
        found, error = single.search_scales(self.engine, self.one, self.given.goal, begin, self.tell)
        if error > max(DISCRETE, 10 * self.given.floor):
            return self._failed(
                found, error, "one token", "no embedding, norms, projections and feed-forward of those known fit"
            )
        found, error = self.settled(found)
        if not self.longer:
            text = "single tokens show neither rope, windows, scales of scores nor states; give longer prompts as well"
            return self._failed(found, error, "attention pattern", text)
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
            others += [single.unnormed(self.engine, self.one, found)] if found.embedding_normed else []
            fits = [self._small(one) for one in others if self.engine.error(one, self.one) < NEARBY]
            found, error = min([(found, error), *fits], key=lambda item: item[1])
        return found, error

    def _small(self, found: Choices) -> tuple[Choices, float]:
        """Epsilon and scales fitted to one-token prompts, from those found and from usual ones.

        An epsilon that came out too small has no slope any more, and scales that make up for it hide the right one.
        """
        names = [name for name in self.continuous(found) if name in POLISHED or "." in name]
        rounded = replace(
            found,
            embedding_scale=_near(found.embedding_scale),
            router_scale=_near(found.router_scale),
            residual_scale=_near(found.residual_scale),
        )
        epsilons = EPSILONS if "eps" in names else EPSILONS[:1]
        usual = min((replace(rounded, eps=eps) for eps in epsilons), key=lambda one: self.engine.error(one, self.one))
        fits = (single.fit_batch(self.engine, self.one, one, names, 8) for one in (found, usual))
        return min(fits, key=lambda item: item[1])

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
        several = [role for role, _ in choices.multipliers]
        names = [name for name in POLISHED if name != "residual_scale" or choices.residual_scale != 1.0]
        names = [name for name in names if name != "eps" or not self.given.coarse]  # rounding hides it
        names = [name for name in names if number(choices, name) is not None] + several
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
        names = self.continuous(found)
        order = [name for name in (*dict(found.multipliers), *SNAPPED) if name in names]
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
