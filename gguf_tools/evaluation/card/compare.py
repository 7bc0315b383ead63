"""Statistics over runs of the card suite: confidence intervals, and paired differences between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf_tools.evaluation.card.parts import (
    Float,
    bits_per_byte,
    extremes_of,
    overall,
    paired_extremes,
    parts_of,
    samples_of,
    score_of,
)
from gguf_tools.evaluation.card.results import Answered, CardReport, outcomes_of
from gguf_tools.evaluation.card.statistics import Interval, McNemar, Paired, bootstrap, mcnemar, paired_difference


@dataclass(frozen=True)
class Flips:
    """The questions to which only the first of two models has the right answer (lost by the second), or only the second."""

    lost: tuple[str, ...]
    gained: tuple[str, ...]

    @property
    def text(self) -> str:
        """What changed, in words."""
        said = [
            f"{verb} {len(questions)}: {'; '.join(questions)}"
            for verb, questions in (("lost", self.lost), ("gained", self.gained))
            if questions
        ]
        return ", ".join(said) or "the same questions are right"


def flips(first: Sequence[Answered], second: Sequence[Answered]) -> Flips | None:
    """What flipped between the answers of two models; None unless both were asked the same questions."""
    if not first or [item.question for item in first] != [item.question for item in second]:
        return None
    pairs = list(zip(first, second, strict=True))
    return Flips(
        tuple(one.question for one, two in pairs if one.right and not two.right),
        tuple(one.question for one, two in pairs if two.right and not one.right),
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference `second` minus `first` on the same items, with paired tests.

    `score` in points of 100, `bits` in bits per byte of the text (negative: `second` is better), `repetition` as the share of
    repeated n-grams, each with a permutation test and a bootstrap interval; `facts` and `held_out` with McNemar's exact test.
    `flipped` says which of the questions changed.
    None if the two were not measured on the same items.
    """

    first: str
    second: str
    score: Paired | None
    facts: McNemar | None
    bits: Paired | None
    held_out: McNemar | None
    repetition: Paired | None
    flipped: Flips | None = None

    @property
    def verdict(self) -> str:
        """The differences that are significant at the 5% level, in words."""
        said = []
        if self.score is not None and self.score.shown:
            said.append(f"scores {'higher' if self.score.estimate > 0 else 'lower'}")
        for name, test in (("facts", self.facts), ("held-out facts", self.held_out)):
            if test is not None and test.shown:
                said.append(f"{'more' if test.difference > 0 else 'fewer'} {name} right")
        if self.bits is not None and self.bits.shown:
            said.append(f"predicts the text {'worse' if self.bits.estimate > 0 else 'better'}")
        if said:
            return ", ".join(said)
        compared = any(test is not None for test in (self.score, self.facts, self.bits, self.held_out))
        return "no significant difference" if compared else "not compared: they were measured on different items"


def score_interval(report: CardReport) -> Interval:
    """The 95% interval of the overall score (0 to 100), by a bootstrap over questions, texts and passages.

    The bounds assume one more item of each kind, the worst or the best that it could be (`extremes_of`), so that the interval
    has a width even if all items agree.
    """
    samples, combine = samples_of(report), score_of(report)
    return bootstrap(
        list(samples.values()),
        lambda means: combine(dict(zip(samples, means, strict=True))),
        list(extremes_of(samples).values()),
    ).interval


def best_first(reports: Mapping[str, CardReport]) -> list[str]:
    """Names by descending score; equal scores keep the given order."""
    return sorted(reports, key=lambda name: -overall(reports[name]))


def difference(first: str, second: str, reports: Mapping[str, CardReport]) -> Difference:
    """The paired tests of two of the reports."""
    one, two = reports[first], reports[second]
    before, after = samples_of(one), samples_of(two)
    alike = {kind: before[kind].shape == after[kind].shape for kind in before.keys() & after.keys()}
    same = before.keys() == after.keys() and all(alike.values())
    same = same and one.mode == two.mode and parts_of(one).keys() == parts_of(two).keys()
    return Difference(
        first=first,
        second=second,
        score=_score_difference(before, after, one) if same else None,
        facts=_facts(one.answers, two.answers),
        bits=_bits_difference(before["passages"], after["passages"]) if alike.get("passages") else None,
        held_out=_facts(one.held_out, two.held_out),
        repetition=_repetition(before, after, one) if same and one.generations else None,
        flipped=flips(one.answers, two.answers),
    )


def part_difference(one: CardReport, two: CardReport, part: str) -> McNemar | None:
    """McNemar's test of a part that is a share of right items; None if it is not one, or the items are others."""
    first, second = (outcomes_of(report).get(part) for report in (one, two))
    if not first or not second or _items_of(one, part) != _items_of(two, part):
        return None
    return mcnemar(first, second)


def _items_of(report: CardReport, part: str) -> list[str]:
    """The texts that the outcomes of a part belong to."""
    if part == "completion":
        return [item.prompt for item in report.completions]
    items = report.answers if part == "facts" else report.promised("thinking" if part == "thinking" else "direct")
    return [item.question for item in items]


def _repetition(before: Mapping[str, Float], after: Mapping[str, Float], report: CardReport) -> Paired:
    """The difference in the share of repeated n-grams over all texts."""
    kinds = [kind for kind in before if kind != "passages"]
    unrepeated = parts_of(report)["repetition"].score_of
    extremes = paired_extremes(before, after)
    return paired_difference(
        [before[kind] for kind in kinds],
        [after[kind] for kind in kinds],
        lambda means: 1.0 - unrepeated(dict(zip(kinds, means, strict=True))),
        [extremes[kind] for kind in kinds],
    )


def _facts(first: Sequence[Answered], second: Sequence[Answered]) -> McNemar | None:
    if not first or [item.question for item in first] != [item.question for item in second]:
        return None
    return mcnemar([item.right for item in first], [item.right for item in second])


def _score_difference(before: Mapping[str, Float], after: Mapping[str, Float], report: CardReport) -> Paired:
    combine = score_of(report)
    return paired_difference(
        list(before.values()),
        [after[kind] for kind in before],
        lambda means: combine(dict(zip(before, means, strict=True))),
        list(paired_extremes(before, after).values()),
    )


def _bits_difference(before: Float, after: Float) -> Paired:
    return paired_difference([before], [after], lambda means: bits_per_byte(means[0]))
