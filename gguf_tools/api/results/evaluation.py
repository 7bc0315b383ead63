"""The result of `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import AMOUNT, SCORE, SHARE, InputError, LlamaError, ThresholdError
from gguf_tools.evaluation import tables
from gguf_tools.evaluation.card.listing import records
from gguf_tools.tables import Block, Lines, Report, Shown
from gguf_tools.text import as_json

if TYPE_CHECKING:
    from gguf_tools.evaluation.card.results import CardReport
    from gguf_tools.evaluation.fidelity import FidelityReport
    from gguf_tools.evaluation.run import FileFailure, FileScores
    from gguf_tools.runtime.interface import Speed


@dataclass(frozen=True, repr=False)
class EvaluateResult(Shown):
    """The result of `evaluate`: `scores` has model information, fidelity and card of each file, best first.

    `failed` lists the files on which llama.cpp failed, if several were evaluated.
    """

    scores: tuple[FileScores, ...]
    failed: tuple[FileFailure, ...] = ()

    @property
    def failures(self) -> str:
        """The errors of the files on which llama.cpp failed, in one line; empty if there are none."""
        return "; ".join(failure.message for failure in self.failed)

    @property
    def fidelity(self) -> FidelityReport | None:
        """The best file's fidelity to the reference; None for suite card."""
        evaluation = self.scores[0].evaluation
        return evaluation.fidelity if evaluation else None

    @property
    def speed(self) -> Speed | None:
        """The best file's speed, or None if not measured."""
        evaluation = self.scores[0].evaluation
        return evaluation.speed if evaluation else None

    @property
    def card(self) -> CardReport | None:
        """The best file's answers and score; None for suite fidelity."""
        return self.scores[0].card

    def require(
        self,
        *,
        min_top1: float | None = None,
        max_nmse: float | None = None,
        max_kl: float | None = None,
        min_greedy: float | None = None,
        min_score: float | None = None,
    ) -> EvaluateResult:
        """Check thresholds, those of `tinyq eval`, for every file; returns the result itself.

        `min_top1` and `min_greedy` are shares (0 to 1), `max_kl` is in nats, `min_score` from 0 to 100. Raises LlamaError if
        llama.cpp failed on a file, ThresholdError naming each file and value that misses a threshold, InputError for a
        threshold out of its range, or on something not measured.
        """
        for name, given in (("min_top1", min_top1), ("min_greedy", min_greedy)):
            SHARE.check(name, given)
        for name, given in (("max_nmse", max_nmse), ("max_kl", max_kl)):
            AMOUNT.check(name, given)
        SCORE.check("min_score", min_score)
        if self.failed:
            raise LlamaError(self.failures)
        bounds = {"min_top1": min_top1, "max_nmse": max_nmse, "max_kl": max_kl, "min_greedy": min_greedy}
        if self.fidelity is None and (asked := [name for name, bound in bounds.items() if bound is not None]):
            raise InputError(f"{asked[0]} needs suite fidelity or all, but only suite card was run")
        if self.card is None and min_score is not None:
            raise InputError("min_score needs suite card or all, but only suite fidelity was run")
        short = tables.shortcomings(self.scores, bounds, min_score)
        if short:
            raise ThresholdError("; ".join(short))
        return self

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq eval --json` writes."""
        return dict(as_json(tables.json_of(self.scores, self.failed)))

    def answers(self) -> list[dict[str, Any]]:
        """The answers of suite card that `tinyq eval --answers` writes: one record for each file, question and mode."""
        return [row for score in self.scores if score.card for row in records(score.model.path, score.card)]

    def answers_report(self) -> Report:
        """Every question with its answers, verdicts and reasons: what `tinyq eval --show-answers` prints."""
        return Report(tables.answers_of(self.scores))

    def as_csv(self) -> str:
        """The text that `tinyq eval --csv` writes: one row per file."""
        return tables.csv_of(self.scores)

    def as_markdown(self) -> str:
        """The table that `tinyq eval --markdown` writes."""
        return tables.markdown_of(self.scores)

    def blocks(self) -> Sequence[Block]:
        """All measurements, and the errors of failed files."""
        failed = [Lines(f"failed: {failure.message}") for failure in self.failed]
        return [*tables.blocks_of(self.scores), *([Lines(), *failed] if failed else [])]

    def _repr_html_(self) -> str:
        table = tables.table_of(self.scores, tables.short_names([one.model.path for one in self.scores]))
        shown = [table, *self.blocks()] if len(self.scores) == 1 else self.blocks()
        return f"<div>{''.join(block.html() for block in shown)}</div>"
