"""What a set of items can show at all, whatever the models answer: the smallest p-values, from the numbers of items alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gguf_tools.evaluation.card.parts import samples_of
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.evaluation.card.statistics import RESAMPLES, SIGNIFICANCE, least_flips, least_p

SEARCHED = 250
"""Variants that a search tries, as an example of a correction for many comparisons."""

MANY = 1_000_000
"""More comparisons than this are not counted."""


@dataclass(frozen=True)
class Reach:
    """The smallest p-value that a paired test on `items` items can give: that of a difference in all of them, one way."""

    items: int
    least_p: float

    @property
    def comparisons(self) -> int:
        """Most comparisons, up to `MANY`, after whose correction (Holm 1979, Bonferroni) the smallest p can be significant."""
        return int(SIGNIFICANCE / max(self.least_p, SIGNIFICANCE / MANY))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "comparisons": self.comparisons}


@dataclass(frozen=True)
class Power:
    """What the three tests of `compare` can show: on the questions, on the text's passages, and on all items together."""

    questions: Reach
    text: Reach
    score: Reach

    @property
    def flips(self) -> int | None:
        """The fewest answers that must change, all one way, for a significant difference; None if all are too few."""
        return _enough(SIGNIFICANCE, self.questions.items)

    @property
    def flips_of_many(self) -> int | None:
        """The same for the best of `SEARCHED` variants."""
        return _enough(SIGNIFICANCE / SEARCHED, self.questions.items)

    def as_dict(self) -> dict[str, Any]:
        """The value of `power` in the card's JSON."""
        tests = {"questions": self.questions, "text": self.text, "score": self.score}
        return {"flips": self.flips, **{name: test.as_dict() for name, test in tests.items()}}

    def sentences(self) -> list[str]:
        """The same in words."""
        return [*self._of_questions(), *self._of_text()]

    def _of_questions(self) -> list[str]:
        count = self.questions.items
        if not count:
            return []
        asked = "1 question" if count == 1 else f"{count} questions"
        if self.flips is None:
            return [f"{asked}: no difference, p is {self.questions.least_p:.2g} at least; ask more"]
        many = self.flips_of_many
        among = f"{many} among {SEARCHED} variants" if many else f"too few among {SEARCHED} variants"
        return [f"{asked}: a difference if {self.flips} answers change, all one way ({among})"]

    def _of_text(self) -> list[str]:
        count, reached = self.text.items, self.text.comparisons
        if not count:
            return []
        read = "1 passage" if count == 1 else f"{count} passages"
        if not reached:
            return [f"{read}: no difference in bits per byte, p is {self.text.least_p:.2g} at least; give more"]
        variants = "1 comparison" if reached == 1 else f"{reached:,} comparisons"
        return [f"{read}: p down to {self.text.least_p:.2g} in bits per byte, enough for {variants}"]


def _enough(significance: float, items: int) -> int | None:
    flips = least_flips(significance)
    return flips if flips <= items else None


def power_of(report: CardReport) -> Power:
    """What the items of a report can show."""
    questions, passages = len(report.answers), len(report.passages)
    items = sum(map(len, samples_of(report).values()))
    return Power(
        Reach(questions, least_p(questions)),
        Reach(passages, least_p(passages, RESAMPLES)),
        Reach(items, least_p(items, RESAMPLES)),
    )
