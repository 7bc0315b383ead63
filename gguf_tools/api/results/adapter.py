"""The result of `convert_adapter`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.conversion.adapter import AdapterPlan
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.text import as_json, human_bytes


@dataclass(frozen=True, repr=False)
class AdapterResult(Shown):
    """The result of `convert_adapter`; `path` and `written` (bytes) are None after a dry run."""

    plan: AdapterPlan
    path: Path | None = None
    written: int | None = None

    @property
    def bytes(self) -> int:
        """The file's size in bytes; after a dry run without the paths that it will record."""
        return self.plan.size if self.written is None else self.written

    @property
    def target(self) -> str:
        """The llama.cpp architecture."""
        return self.plan.architecture

    @property
    def type(self) -> str:
        """The type of the factors, such as f32."""
        return self.plan.decision.recipe

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the adapter and its base, each a sentence."""
        return self.plan.notes

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq convert --base … --json` writes."""
        plan = self.plan
        report = {
            "adapter": str(plan.adapter.path),
            "base": str(plan.base.path),
            "target": self.target,
            "rewrites": [{"name": rewrite.name, "why": rewrite.why} for rewrite in plan.merged.rewrites],
            "type": self.type,
            "type_reason": plan.decision.reason,
            "notes": list(self.notes),
            "tensors": [
                {
                    "name": each.name,
                    "shape": list(each.tensor.shape),
                    "rank": each.rank,
                    "sources": list(each.tensor.sources),
                }
                for each in plan.changed
            ],
            "bytes": self.bytes,
            "path": str(self.path) if self.path else None,
        }
        return dict(as_json(report))

    def blocks(self) -> Sequence[Block]:
        """For a dry run a table of tensors and a summary, otherwise the summary alone."""
        facts = _overview(self)
        if self.path:
            return [Facts([*facts, ("wrote", f"{self.path} ({human_bytes(self.bytes)})"), ("use", _use(self.path))])]
        rows = [
            (each.name, "×".join(map(str, each.tensor.shape)), each.rank, ", ".join(each.tensor.sources[:1]))
            for each in self.plan.changed
        ]
        columns = (
            Column("tensor", left=True, key=True, least=24),
            Column("shape", left=True, rank=1),
            Column("rank"),
            Column("changed by", left=True, rank=2, least=24, end=True),
        )
        return [Table(columns, rows), Lines(), Facts(facts), Lines("nothing was written (--dry-run)")]


def _use(path: Path) -> str:
    return f"llama-cli -m BASE.gguf --lora {path}"


def _overview(result: AdapterResult) -> list[tuple[str, str]]:
    """Labelled lines: adapter, base, target, rewrites, tensors, type and notes."""
    plan = result.plan
    ranks = sorted({each.rank for each in plan.changed})
    said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    rows = [
        ("adapter", plan.adapter.text),
        ("base", f"{plan.base.path} ({plan.merged.model.family})"),
        ("target", plan.architecture),
        *(("rewrite", f"{rewrite.name}: {rewrite.why}") for rewrite in plan.merged.rewrites),
        ("tensors", f"{len(plan.changed)} tensors are changed, {said}"),
        ("type", f"{result.type}: {plan.decision.reason}"),
    ]
    return rows + [("note", note) for note in result.notes]
