"""The result of `operate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.tables import Block, Facts, Lines, Shown
from gguf_tools.text import as_json, human_bytes
from surgery.algebra import describe
from surgery.auto import Choice
from surgery.checkpoint.rewrite import CheckpointPlan
from surgery.draw import changes, draw, removed
from surgery.gguf.proof import Proved
from surgery.gguf.rewrite import GGUFPlan

SurgeryPlan = CheckpointPlan | GGUFPlan


@dataclass(frozen=True, repr=False, kw_only=True)
class OperateResult(Shown):
    """The result of `operate`.

    `path` is the output, None for a dry run without one; `bytes` the number of bytes written, None after a dry run. `plan` is
    None after an undo, when `undone` is the undone recipe, and after only completing an interrupted in-place change, when
    `completed` describes that change. `proof` is what running source and result in llama.cpp showed, None if that was not done.
    `choice` is what was measured, if the first op measures.
    """

    source: Path
    path: Path | None = None
    plan: SurgeryPlan | None = None
    in_place: bool = False
    bytes: int | None = None
    undone: str | None = None
    completed: str | None = None
    proof: Proved | None = None
    choice: Choice | None = None

    @property
    def recipe(self) -> str:
        """The ops in order, as recipe text."""
        return str(self.plan.recipe) if self.plan else self.undone or self.completed or ""

    @property
    def kinds(self) -> tuple[Sequence[str], Sequence[str]]:
        """The letter of each layer before and after, as in `ModelSpec.pattern`."""
        if self.plan is None:
            return (), ()
        if isinstance(self.plan, CheckpointPlan):
            return list(self.plan.source_model.spec.pattern), list(self.plan.model.spec.pattern)
        return self.plan.letters

    @property
    def layers_before(self) -> int:
        """Number of layers of the source."""
        return len(self.kinds[0])

    @property
    def layers_after(self) -> int:
        """Number of layers of the output."""
        return len(self.kinds[1])

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on further changes in a GGUF and on differences of donors, each a sentence."""
        return () if self.plan is None or self.in_place else self.plan.notes

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq surgery --json` writes."""
        plan = self.plan
        if plan is None:
            done = {"undone": self.undone} if self.completed is None else {"completed": self.completed}
            return {"source": str(self.source), **done}
        old, new = self.kinds
        report: dict[str, Any] = {
            "source": str(self.source),
            "out": None if self.path is None else str(self.path),
            "format": "checkpoint" if isinstance(plan, CheckpointPlan) else "gguf",
            "in_place": self.in_place,
            "recipe": self.recipe,
            "layers_before": len(old),
            "layers_after": len(new),
            "layers": [
                {"index": n, "kind": new[n], "from": describe(layer), "change": change}
                for n, (layer, change) in enumerate(zip(plan.stack, changes(plan.stack), strict=True))
            ],
            "removed": removed(plan.stack, len(old)),
            "computed_tensors": plan.computed,
            "notes": list(self.notes),
        }
        if self.choice:
            found = self.choice.statistics
            report["measured"] = {
                "op": str(self.choice.op),
                "text": self.choice.text,
                "update_norm": list(found.update_norm),
                "influence": list(found.influence),
                "saliency": {str(layer): list(scores) for layer, scores in found.saliency.items()},
            }
        if plan.recipe.donors:
            report["donors"] = {
                donor.name: {"path": str(donor.path), "digest": donor.digest} for donor in plan.recipe.donors
            }
        report |= {} if self.bytes is None else {"bytes": self.bytes}
        report |= {} if self.proof is None else {"proof": self.proof.as_dict()}
        return dict(as_json(report))

    def blocks(self) -> Sequence[Block]:
        """Old and new layers side by side, and the written output."""
        plan = self.plan
        if plan is None and self.completed is not None:
            return [Facts([("completed", f"the interrupted change of {self.source}: {self.completed}")])]
        if plan is None:
            return [Facts([("undone", f"{self.undone} in {self.source}")])]
        old, new = map(list, self.kinds)
        count = len(plan.computed)
        made = f"{count} tensors are computed, all others copied" if count else "all tensors are copied unchanged"
        donors = [(donor.name, str(donor.path)) for donor in plan.recipe.donors]
        told = [("measured", f"{self.choice.op} on {self.choice.text}")] if self.choice else []
        facts = [*told, ("recipe", self.recipe or "no op"), *donors, ("layers", f"{len(old)} → {len(new)}; {made}")]
        drawing = [Lines(), Lines(draw(plan.stack, len(old), old, new), fixed=True), Lines()]
        notes = [("note", note) for note in self.notes]
        if self.bytes is None:
            return [
                Facts(facts),
                *drawing,
                *([Facts(notes)] if notes else []),
                Lines("nothing was written (--dry-run)"),
            ]
        where = " in the header" if self.in_place else ""
        done = ("wrote", f"{self.path} ({human_bytes(self.bytes)}{where})")
        proved = [("proof", line) for line in self.proof.lines] if self.proof else []
        return [Facts(facts), *drawing, Facts([*notes, *proved, done])]
