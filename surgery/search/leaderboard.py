"""What a study shows: each candidate against the base on the same items, the best ones confirmed on held-out items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.statistics import (
    SIGNIFICANCE,
    McNemar,
    Paired,
    holm,
    mcnemar,
    paired_difference,
)
from gguf_tools.text import shortened
from surgery.search.correlation import spearman
from surgery.search.ledger import HELD_OUT as HELD_OUT_STUDY
from surgery.search.ledger import Ledger
from surgery.search.objective import Objective, dominates, parse_objective, ranked
from surgery.search.records import HELD_OUT, KL, QUESTIONS, SPEED, TEXT, UPDATE_NORM, Measured, Record
from surgery.search.storage import shown_url


@dataclass(frozen=True, kw_only=True)
class Against:
    """A candidate against the base on the same items of one measurement.

    `questions` and `bits` are the tests of the answers and of the bits a byte, None where that was not measured.
    """

    questions: McNemar | None
    bits: Paired | None

    def p_values(self) -> list[float]:
        """The p-values of the tests that there are."""
        return [test.p_value for test in (self.questions, self.bits) if test is not None]

    def better(self) -> list[bool]:
        """For each of the tests, whether the candidate is better in it."""
        found = [] if self.questions is None else [self.questions.difference > 0]
        return found + ([] if self.bits is None else [self.bits.estimate < 0])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        questions, bits = self.questions, self.bits
        return {
            "questions": None
            if questions is None
            else {
                "difference": questions.difference,
                "lost": questions.first_only,
                "gained": questions.second_only,
                "p_value": questions.p_value,
            },
            "bits_per_byte": None
            if bits is None
            else {"difference": bits.estimate, "interval": bits.interval.as_list(), "p_value": bits.p_value},
        }


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A candidate on the held-out items: its figures, the comparison with the base there, and what survives.

    `p_value` is the smallest of the tests in which the candidate is better, corrected by Holm for all tests of all confirmed
    candidates; None where it is better in none. `shrinkage` is how much of its gain in the objective is gone, None where the
    objective was not measured on the held-out items.
    """

    figures: dict[str, float]
    against: Against
    p_value: float | None
    worse: float | None
    shrinkage: float | None

    @property
    def survives(self) -> bool:
        """Whether it is better than the base in one test at least, after the correction, and worse in none."""
        return self.p_value is not None and self.p_value < SIGNIFICANCE and not self.is_worse

    @property
    def is_worse(self) -> bool:
        """Whether it is worse than the base in one test at least, after the correction."""
        return self.worse is not None and self.worse < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class Line:
    """One candidate: its rank among the complete ones (None for others), the objectives, and the comparison with the base."""

    record: Record
    rank: int | None
    values: tuple[float | None, ...]
    against: Against | None
    confirmed: Confirmed | None

    @property
    def name(self) -> str:
        """The recipe, or what the base is called."""
        return self.record.entry.name

    @property
    def bytes(self) -> int | None:
        """Size of the file."""
        return _figure(self.record, "bytes")

    @property
    def layers(self) -> int | None:
        """Number of layers."""
        return _figure(self.record, "layers")

    @property
    def speeds(self) -> list[float] | None:
        """The smallest and the largest multiple of the base's speed that was measured, None where it was not."""
        found = self.record.results.get(SPEED)
        return None if found is None else [found.figures["low"], found.figures["high"]]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A study as it stands: the base, its quantizations, the complete candidates best first, and the others by place.

    `front` are the names of those that nothing else beats in the objectives and in size at once, the base and its quantizations
    among them. `predicted` are rank correlations of the expected loss with what was measured, by stage.
    """

    study: str
    setup: dict[str, Any]
    objectives: tuple[Objective, ...]
    base: Line | None
    rivals: tuple[Line, ...]
    best: tuple[Line, ...]
    others: tuple[Line, ...]
    front: tuple[str, ...]
    predicted: dict[str, float]

    @property
    def tried(self) -> int:
        """Number of candidates."""
        return len(self.best) + len(self.others)

    @property
    def drawn(self) -> list[Line]:
        """The lines whose size and first objective are known, for pictures: the base, its quantizations, the candidates."""
        lines = (self.base, *self.rivals, *self.best)
        return [line for line in lines if line and line.bytes and line.values[0] is not None]

    @property
    def verdict(self) -> str:
        """The first sentence of the report."""
        if self.base is None or not self.best:
            return "No candidate has been measured completely yet."
        confirmed = [line for line in self.best if line.confirmed is not None]
        if not confirmed:
            return "The best candidates have not been measured on held-out items yet."
        found = [line for line in confirmed if line.confirmed and line.confirmed.survives]
        if found:
            names = ", ".join(line.name for line in found[:3])
            which = "it is" if len(found) == 1 else f"{len(found)} of {len(confirmed)} are"
            return (
                f"{names}: better than the base on held-out items, too; {which} significant after Holm's correction for all "
                f"tests of the {len(confirmed)} confirmed candidates."
            )
        return (
            f"No candidate of {self.tried} beats the base: of the best {len(confirmed)}, none is significantly better on "
            "held-out items after Holm's correction. What the search gives is the front of score and size below."
        )

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq search --json` writes."""
        lines = [*self.best, *self.others]
        return {
            "study": self.study,
            "setup": self.setup,
            "verdict": self.verdict,
            "objectives": [objective.name for objective in self.objectives],
            "base": None if self.base is None else self._as_dict(self.base),
            "rivals": [self._as_dict(line) for line in self.rivals],
            "best": self._as_dict(self.best[0]) if self.best else None,
            "front": list(self.front),
            "predicted": self.predicted,
            "trials": [self._as_dict(line) for line in lines],
        }

    def _as_dict(self, line: Line) -> dict[str, Any]:
        """One candidate for JSON."""
        figures = {name: dict(found.figures) for name, found in line.record.results.items()}
        found: dict[str, Any] = {
            "recipe": line.record.entry.recipe,
            "name": line.name,
            "state": line.record.state,
            "rank": line.rank,
            "values": {objective.name: value for objective, value in zip(self.objectives, line.values, strict=True)},
            "layers": line.layers,
            "bytes": line.bytes,
            "reason": line.record.reason or None,
            "stages": figures,
            "against_base": None if line.against is None else line.against.as_dict(),
        }
        if line.confirmed is not None:
            confirmed = line.confirmed
            found["confirmed"] = {
                "figures": confirmed.figures,
                "against_base": confirmed.against.as_dict(),
                "p_value": confirmed.p_value,
                "survives": confirmed.survives,
                "shrinkage": confirmed.shrinkage,
            }
        return found


def read_board(ledger: Ledger) -> Board:
    """The study of a ledger with what was confirmed, as it stands."""
    records = ledger.records()
    objectives = tuple(_named(name) for name in ledger.setup["objectives"])
    confirmed: list[Record] = []
    if ledger.has(ledger.name + HELD_OUT_STUDY):
        confirmed = Ledger.open(ledger.url, ledger.name + HELD_OUT_STUDY).records()
    try:
        return board(ledger.name, ledger.setup, objectives, records, confirmed)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{shown_url(ledger.url)}: the results of the study {ledger.name} are broken ({shortened(repr(error))}); tinyq "
            "search did not write them"
        ) from error


def stored_board(url: str, study: str) -> Board | None:
    """The study as it stands, None where it is not there or its storage cannot be used."""
    try:
        return read_board(Ledger.open(url, study))
    except InputError:
        return None


def _named(name: str) -> Objective:
    """An objective of a study; a user's function is not imported to show its values."""
    if ":" in name:
        return Objective(name, "function", "function", "maximize")
    return parse_objective(name)


def board(
    study: str,
    setup: dict[str, Any],
    objectives: Sequence[Objective],
    records: Sequence[Record],
    confirmed: Sequence[Record],
) -> Board:
    """The board of a study's records and of those measured on held-out items; a pure function."""
    base = next((r for r in records if r.entry.always and not r.entry.type), None)
    order = ranked(records, objectives)
    checks = _confirmations(base, order, confirmed, objectives[0])
    rank = {record.number: n for n, record in enumerate(order, 1)}

    def line(record: Record) -> Line:
        """A record beside the base."""
        values = tuple(
            objective.value(record) if objective.stage in record.results else None for objective in objectives
        )
        against = None if base is None or record is base else _last(base, record)
        return Line(
            record=record,
            rank=rank.get(record.number),
            values=values,
            against=against,
            confirmed=checks.get(record.entry.key),
        )

    rest = [r for r in records if r.number not in rank and not r.entry.always]
    found = Board(
        study=study,
        setup=setup,
        objectives=tuple(objectives),
        base=None if base is None else line(base),
        rivals=tuple(line(r) for r in records if r.entry.type),
        best=tuple(map(line, order)),
        others=tuple(map(line, rest)),
        front=(),
        predicted=_predicted(records),
    )
    return _with_front(found)


def _with_front(found: Board) -> Board:
    """The board with the names that nothing beats in objectives and size."""
    lines = [line for line in (found.base, *found.rivals, *found.best) if line is not None]
    losses = {}
    for line in lines:
        if line.bytes is not None and None not in line.values:
            values = [objective.range(line.record) for objective in found.objectives]
            losses[line.name] = [*values, (float(line.bytes), float(line.bytes))]
    front = [name for name, a in losses.items() if not any(dominates(b, a) for b in losses.values())]
    return replace(found, front=tuple(front))


def against(base: Measured, other: Measured) -> Against:
    """Two measurements of the same items compared."""
    before, after = base.items.get("right") or [], other.items.get("right") or []
    questions = mcnemar(before, after) if before and len(before) == len(after) else None
    one, two = (np.array(found.items.get("passages") or [], dtype=np.float64) for found in (base, other))
    bits = None
    if len(one) and one.shape == two.shape:
        bits = paired_difference([one], [two], lambda means: means[0][:, 0] / means[0][:, 1])
    return Against(questions=questions, bits=bits)


def _last(base: Record, record: Record) -> Against | None:
    """The comparison in the last stage with items that both have."""
    for stage in (QUESTIONS, TEXT):
        if stage in base.results and stage in record.results:
            return against(base.results[stage], record.results[stage])
    return None


def _confirmations(
    base: Record | None, order: Sequence[Record], confirmed: Sequence[Record], objective: Objective
) -> dict[str, Confirmed]:
    """What was measured on held-out items, by the candidate's key, corrected together."""
    by_key = {record.entry.key: record for record in confirmed if HELD_OUT in record.results}
    if base is None or base.entry.key not in by_key:
        return {}
    ground = by_key[base.entry.key].results[HELD_OUT]
    chosen = [record for record in order if record.entry.key in by_key]
    compared = [against(ground, by_key[record.entry.key].results[HELD_OUT]) for record in chosen]
    p_values = holm([p for one in compared for p in one.p_values()])
    found: dict[str, Confirmed] = {}
    for record, one in zip(chosen, compared, strict=True):
        own, p_values = p_values[: len(one.p_values())], p_values[len(one.p_values()) :]
        better = [p for p, good in zip(own, one.better(), strict=True) if good]
        worse = [p for p, good in zip(own, one.better(), strict=True) if not good]
        figures = by_key[record.entry.key].results[HELD_OUT].figures
        found[record.entry.key] = Confirmed(
            figures=dict(figures),
            against=one,
            p_value=min(better, default=None),
            worse=min(worse, default=None),
            shrinkage=_shrinkage(base, record, ground, by_key[record.entry.key].results[HELD_OUT], objective),
        )
    return found


def _shrinkage(base: Record, record: Record, ground: Measured, held: Measured, objective: Objective) -> float | None:
    """How much of the gain of what the objective counts is gone on held-out items: of right answers, or of bits a byte."""
    stage = QUESTIONS if objective.stage == QUESTIONS else TEXT
    if stage not in base.results or stage not in record.results:
        return None
    before = base.results[stage], record.results[stage]
    after = ground, held
    if objective.stage == QUESTIONS:
        gains = [
            two.figures["right"] / two.figures["asked"] - one.figures["right"] / one.figures["asked"]
            for one, two in (before, after)
            if one.figures.get("asked") and two.figures.get("asked")
        ]
    else:
        gains = [one.figures["bits_per_byte"] - two.figures["bits_per_byte"] for one, two in (before, after)]
    return gains[0] - gains[1] if len(gains) == 2 else None


def _predicted(records: Sequence[Record]) -> dict[str, float]:
    """Spearman's rank correlation of the expected loss with KL and with the bits a byte, of the candidates measured in both."""
    found = {}
    for stage, figure in ((KL, "kl"), (TEXT, "bits_per_byte")):
        both = [r for r in records if r.entry.recipe and stage in r.results and UPDATE_NORM in r.results]
        if len(both) > 2:
            expected = [r.results[UPDATE_NORM].figures["expected"] for r in both]
            measured = [r.results[stage].figures[figure] for r in both]
            found[stage] = spearman(expected, measured)
    return found


def _figure(record: Record, name: str) -> int | None:
    """A whole figure of the last stage that has it."""
    values = [int(found.figures[name]) for found in record.results.values() if name in found.figures]
    return values[-1] if values else None
