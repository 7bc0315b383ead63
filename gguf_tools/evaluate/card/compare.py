"""What the numbers of one or several runs of the card suite allow to say: intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf_tools.evaluate.card.parts import Part, bits_per_byte, overall, parts_of, score_of
from gguf_tools.evaluate.card.results import Answered, CardReport
from gguf_tools.evaluate.card.statistics import Interval, McNemar, Paired, bootstrap, mcnemar, paired_difference


@dataclass(frozen=True)
class Difference:
    """How `second` differs from `first` on the same items: second minus first, each with a paired test.

    `score` in points of 100, `bits` in bits a byte of the text (below 0: `second` is better), both by a permutation test
    and with a bootstrap interval; `facts` and `held_out` by McNemar's exact test. None where the two did not do the same
    items.
    """

    first: str
    second: str
    score: Paired | None
    facts: McNemar | None
    bits: Paired | None
    held_out: McNemar | None

    @property
    def verdict(self) -> str:
        """What is shown at the 95% level, in words."""
        said = []
        if self.score is not None and self.score.shown:
            said.append(f"scores {'higher' if self.score.estimate > 0 else 'lower'}")
        for name, test in (("facts", self.facts), ("held-out facts", self.held_out)):
            if test is not None and test.shown:
                said.append(f"{'more' if test.difference > 0 else 'fewer'} {name} right")
        if self.bits is not None and self.bits.shown:
            said.append(f"foretells the text {'worse' if self.bits.estimate > 0 else 'better'}")
        if said:
            return ", ".join(said)
        compared = any(test is not None for test in (self.score, self.facts, self.bits, self.held_out))
        return "no difference shown" if compared else "not compared: they were not asked the same"


def score_interval(report: CardReport) -> Interval:
    """The 95% interval of the overall score, 0 to 100: a bootstrap over questions, texts and passages."""
    parts = list(parts_of(report).values())
    return bootstrap([part.values for part in parts], score_of(parts, report.weights)).interval


def best_first(reports: Mapping[str, CardReport]) -> list[str]:
    """Names in falling order of the score; among equals in the order given."""
    return sorted(reports, key=lambda name: -overall(reports[name]))


def difference(first: str, second: str, reports: Mapping[str, CardReport]) -> Difference:
    """The paired tests of two of the reports."""
    one, two = reports[first], reports[second]
    before, after = parts_of(one), parts_of(two)
    alike = {name: _alike(before.get(name), after.get(name)) for name in before.keys() | after.keys()}
    return Difference(
        first,
        second,
        _score_difference(before, after, one.weights) if all(alike.values()) else None,
        _facts(one.answers, two.answers),
        _bits_difference(before["perplexity"], after["perplexity"]) if alike.get("perplexity") else None,
        _facts(one.held_out, two.held_out),
    )


def _alike(first: Part | None, second: Part | None) -> bool:
    return first is not None and second is not None and first.values.shape == second.values.shape


def _facts(first: Sequence[Answered], second: Sequence[Answered]) -> McNemar | None:
    if not first or [item.question for item in first] != [item.question for item in second]:
        return None
    return mcnemar([item.right for item in first], [item.right for item in second])


def _score_difference(before: Mapping[str, Part], after: Mapping[str, Part], weights: Mapping[str, float]) -> Paired:
    first = [before[name] for name in before]
    second = [after[name].values for name in before]
    return paired_difference([part.values for part in first], second, score_of(first, weights))


def _bits_difference(before: Part, after: Part) -> Paired:
    return paired_difference([before.values], [after.values], lambda means: bits_per_byte(means[0]))
