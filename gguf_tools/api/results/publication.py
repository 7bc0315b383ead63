"""The result of `publish`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.text import as_json, human_bytes

if TYPE_CHECKING:
    from gguf_tools.publishing.plan import PublicationPlan
    from gguf_tools.publishing.write import Publication

_FILE = Column("file", left=True, key=True, least=20)
_SIZES = (Column("size", human_bytes), Column("bits/weight", "{:.2f}".format))


@dataclass(frozen=True, repr=False)
class PublishResult(Shown):
    """The result of `publish`: `made` is None after a dry run."""

    plan: PublicationPlan
    folder: Path
    made: Publication | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The GGUF files, the largest first; after a dry run those that would be written."""
        return tuple(self.folder / name for name in self.plan.names)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the checkpoint, and on values that the hub would refuse and that the card leaves out, each a sentence."""
        return (*self.plan.conversions[0].notes, *(self.made.notes if self.made else ()))

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq publish --json` writes."""
        return dict(as_json(self._report()))

    def _report(self) -> dict[str, Any]:
        """The entries of `as_dict`, with a dictionary for each file, the largest first."""
        plan, made = self.plan, self.made
        files: list[dict[str, Any]] = []
        for n, (conversion, name, tag) in enumerate(zip(plan.conversions, plan.names, plan.tags, strict=True)):
            file: dict[str, Any] = {
                "path": str(self.folder / name),
                "type": conversion.decision.name,
                "tag": tag,
                "bytes": conversion.size,
                "bpw": conversion.report.bits_per_weight,
            }
            if made:
                found, written = made.measured[n], made.written[n]
                errors = {tensor: loss.relative_error for tensor, loss in written.by_tensor.items()}
                file |= {"bytes": written.bytes, "sha256": found.digest, "modelfile": plan.modelfiles[n]}
                file |= found.scores.as_dict() | {"memory": vars(found.memory), "relative_rms_error": errors}
            files.append(file)
        return {
            "folder": str(self.folder),
            "source": str(plan.conversions[0].source),
            "target": plan.conversions[0].plan.target.name,
            "base_models": list(plan.base_models),
            "files": files,
            "sha256": dict(made.digests) if made else None,
            "modelfile": made
            and {"template": made.facts.modelfile.layout is not None, "reason": made.facts.modelfile.reason},
            "notes": list(self.notes),
        }

    def blocks(self) -> Sequence[Block]:
        """A table of the files, with what was measured, and what was written."""
        plan, made = self.plan, self.made
        notes = [("note", note) for note in self.notes]
        if made is None:
            sizes = [(one.size, one.report.bits_per_weight) for one in plan.conversions]
            rows = [(name, *size) for name, size in zip(plan.names, sizes, strict=True)]
            told = f"{human_bytes(plan.size)} in {len(rows)} files; nothing was written (--dry-run)"
            return [Table((_FILE, *_SIZES), rows), Lines(), *([Facts(notes)] if notes else []), Lines(told)]
        wrote = f"{len(made.digests)} files in {self.folder} ({human_bytes(sum(one.bytes for one in made.written))})"
        return [self._measured(made), Lines(), Facts([*notes, ("wrote", wrote)])]

    def _measured(self, made: Publication) -> Table:
        """Sizes, errors and scores, a row for each file."""
        from gguf_tools.evaluation.card.report import CARD_COLUMNS, card_row

        rows: list[list[Any]] = []
        columns = [_FILE, *_SIZES]
        first = made.measured[0].scores
        if first.evaluation:
            columns += [
                Column("NMSE", "{:.1e}".format),
                Column("KL mean", "{:.1e}".format),
                Column("top-1", "{:.4f}".format),
            ]
        if first.card:
            columns += CARD_COLUMNS
        for name, found in zip(self.plan.names, made.measured, strict=True):
            row: list[Any] = [name, found.scores.model.bytes, found.scores.model.bpw]
            if found.scores.evaluation:
                metrics = found.scores.evaluation.fidelity.metrics
                row += [metrics.nmse, metrics.kl_mean, metrics.top1_agreement]
            if found.scores.card:
                row += card_row(found.scores.card)
            rows.append(row)
        return Table(columns, rows)
