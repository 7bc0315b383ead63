"""Scores of one GGUF, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import InputError, LlamaError, ThresholdError
from gguf_tools.evaluation import tables
from gguf_tools.text import Block, Grid, Lines, Shown, as_json

if TYPE_CHECKING:
    from gguf_tools.evaluation.card.results import CardReport
    from gguf_tools.evaluation.fidelity import FidelityReport
    from gguf_tools.evaluation.run import FileFailure, FileScores
    from gguf_tools.runtime.interface import Speed


@dataclass(frozen=True, repr=False)
class EvaluateResult(Shown):
    """What `evaluate` measured: `scores` has the facts, fidelity and card of each file, best first.

    `failed` are the files, of several, that llama.cpp failed on.
    """

    scores: tuple[FileScores, ...]
    failed: tuple[FileFailure, ...] = ()

    @property
    def failures(self) -> str:
        """What was seen of the files that llama.cpp failed on, in one line; empty where there are none."""
        return "; ".join(failure.message for failure in self.failed)

    @property
    def fidelity(self) -> FidelityReport | None:
        """The best file's distance from the reference; None under suite card."""
        evaluation = self.scores[0].evaluation
        return evaluation.fidelity if evaluation else None

    @property
    def speed(self) -> Speed | None:
        """The best file's speed, where it was measured."""
        evaluation = self.scores[0].evaluation
        return evaluation.speed if evaluation else None

    @property
    def card(self) -> CardReport | None:
        """The best file's answers and score; None under suite fidelity."""
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
        """The result itself where every file meets every threshold given; they are those of `tinyq eval`.

        Raises LlamaError where llama.cpp failed on a file, ThresholdError that names each file and number that fell short,
        InputError for a threshold on what was not measured.
        """
        if self.failed:
            raise LlamaError(self.failures)
        bounds = {"min_top1": min_top1, "max_nmse": max_nmse, "max_kl": max_kl, "min_greedy": min_greedy}
        if self.fidelity is None and (asked := [name for name, bound in bounds.items() if bound is not None]):
            raise InputError(f"{asked[0]} needs suite fidelity or all, and only the card was measured")
        if self.card is None and min_score is not None:
            raise InputError("min_score needs suite card or all, and only the fidelity was measured")
        short = tables.shortcomings(self.scores, bounds, min_score)
        if short:
            raise ThresholdError("; ".join(short))
        return self

    def as_dict(self) -> dict[str, Any]:
        """What `tinyq eval --json` writes."""
        return dict(as_json(tables.json_of(self.scores, self.failed)))

    def as_csv(self) -> str:
        """What `tinyq eval --csv` writes: a line a file."""
        return tables.csv_of(self.scores)

    def as_markdown(self) -> str:
        """What `tinyq eval --markdown` writes."""
        return tables.markdown_of(self.scores)

    def blocks(self) -> Sequence[Block]:
        """All that was measured."""
        failed = [Lines(f"failed: {failure.message}") for failure in self.failed]
        return [Lines(tables.text_of(self.scores)), *([Lines(), *failed] if failed else [])]

    def _repr_html_(self) -> str:
        grid = Grid(*tables.table_of(self.scores, tables.short_names([one.model.path for one in self.scores])))
        return f"<div>{grid.html()}{''.join(block.html() for block in self.blocks())}</div>"
