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
    from gguf_tools.publishing.upload import Uploaded
    from gguf_tools.publishing.write import Publication

_FILE = Column("file", left=True, key=True, least=20)
_SIZES = (Column("size", human_bytes), Column("bits/weight", "{:.2f}".format))


@dataclass(frozen=True, repr=False)
class PublishResult(Shown):
    """The result of `publish`.

    `plan` is None if a folder of an earlier run was uploaded, `made` after that and after a dry run, `uploaded` unless `to` was
    given. `replaced` are, after a dry run, the files in the repository that would be replaced.
    """

    plan: PublicationPlan | None
    folder: Path
    made: Publication | None = None
    uploaded: Uploaded | None = None
    replaced: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The GGUF files, the largest first; after a dry run those that would be written."""
        if self.plan is None:
            return tuple(sorted(self.folder.glob("*.gguf"), key=lambda path: -path.stat().st_size))
        return tuple(self.folder / name for name in self.plan.names)

    @property
    def url(self) -> str | None:
        """The address of the commit on the hub."""
        return self.uploaded.url if self.uploaded else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the checkpoint, and on values that the hub would refuse and that the card leaves out, each a sentence."""
        checkpoint = self.plan.conversions[0].notes if self.plan else ()
        return (*checkpoint, *(self.made.notes if self.made else ()))

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq publish --json` writes."""
        report: dict[str, Any] = {"folder": str(self.folder)}
        report |= _report(self.plan, self.folder, self.made) if self.plan else {}
        report |= {"notes": list(self.notes), "replaced": list(self.replaced)}
        report["upload"] = (
            None if self.uploaded is None else {**vars(self.uploaded), "names": list(self.uploaded.names)}
        )
        return dict(as_json(report))

    def blocks(self) -> Sequence[Block]:
        """A table of the files, with what was measured, and what was written and uploaded."""
        plan, made, sent = self.plan, self.made, self.uploaded
        facts = [("note", note) for note in self.notes]
        if self.replaced:
            facts.append(("replaced", f"in the repository, with --force: {', '.join(self.replaced)}"))
        head: list[Block] = []
        if plan and made:
            head = [_measured(plan, made), Lines()]
            size = human_bytes(sum(one.bytes for one in made.written))
            facts.append(("wrote", f"{len(made.digests)} files in {self.folder} ({size})"))
        elif plan:
            sizes = [(one.size, one.report.bits_per_weight) for one in plan.conversions]
            rows = [(name, *size) for name, size in zip(plan.names, sizes, strict=True)]
            head = [Table((_FILE, *_SIZES), rows), Lines()]
        if sent:
            what = (
                f"{len(sent.names)} files ({human_bytes(sent.bytes)})"
                if sent.names
                else "nothing: all is there already"
            )
            facts += [("uploaded", what), ("commit", sent.url)]
        if not made and not sent:
            total = f"{human_bytes(plan.size)} in {len(plan.names)} files; " if plan else ""
            facts.append(("dry run", f"{total}nothing was written (--dry-run)"))
        return [*head, Facts(facts)]


def _report(plan: PublicationPlan, folder: Path, made: Publication | None) -> dict[str, Any]:
    """The entries of `as_dict` on what was planned and made, with a dictionary for each file, the largest first."""
    files: list[dict[str, Any]] = []
    for n, (conversion, name, tag) in enumerate(zip(plan.conversions, plan.names, plan.tags, strict=True)):
        file: dict[str, Any] = {
            "path": str(folder / name),
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
    template = made and {"template": made.facts.modelfile.layout is not None, "reason": made.facts.modelfile.reason}
    return {
        "source": str(plan.conversions[0].source),
        "target": plan.conversions[0].plan.target.name,
        "base_models": list(plan.base_models),
        "files": files,
        "sha256": dict(made.digests) if made else None,
        "modelfile": template,
    }


def _measured(plan: PublicationPlan, made: Publication) -> Table:
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
    for name, found in zip(plan.names, made.measured, strict=True):
        row: list[Any] = [name, found.scores.model.bytes, found.scores.model.bpw]
        if found.scores.evaluation:
            metrics = found.scores.evaluation.fidelity.metrics
            row += [metrics.nmse, metrics.kl_mean, metrics.top1_agreement]
        if found.scores.card:
            row += card_row(found.scores.card)
        rows.append(row)
    return Table(columns, rows)
