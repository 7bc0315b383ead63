"""The result of `quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.quantization.plan import Quantization
from gguf_tools.quantization.write import Quantized
from gguf_tools.sources.hub import shown_source
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.tensors.blocks import nonfinite_rows
from gguf_tools.text import as_json, human_bytes
from quant.narrowing import Narrowing

if TYPE_CHECKING:
    from gguf_tools.allocation.choose import Chosen


@dataclass(frozen=True, repr=False)
class QuantizeResult(Shown):
    """The result of `quantize`: `written` is None after a dry run, `chosen` unless types were selected for a size."""

    plan: Quantization
    chosen: Chosen | None = None
    written: Quantized | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths of the written files, several if the output is split; empty after a dry run."""
        return self.written.paths if self.written else ()

    @property
    def path(self) -> Path | None:
        """The path of the first written file, or None after a dry run."""
        return self.paths[0] if self.paths else None

    @property
    def bytes(self) -> int:
        """The output's size in bytes, all shards together, exact also after a dry run."""
        return self.plan.size

    @property
    def type(self) -> str:
        """The type recipe, such as q4_k_m."""
        return self.plan.recipe.name

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on changes other than of types, each a sentence."""
        return self.plan.notes

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq quantize --json` writes."""
        plan, losses = self.plan, self.written.losses if self.written else None
        report: dict[str, Any] = {
            "source": [str(header.path) for header in plan.sources],
            "type": plan.recipe.name,
            "size": plan.size,
            "notes": list(plan.notes),
            **plan.report.as_dict(),
            "tensors": [
                {
                    "name": choice.name,
                    "shape": list(tensor.shape),
                    "from": tensor.entry.type.name,
                    "type": choice.type.name,
                    "wanted": choice.wanted.name,
                    "reason": choice.reason,
                    "bytes": entry.nbytes,
                    "importance": choice.name in plan.importance,
                    **({} if losses is None else _loss_dict(losses.get(choice.name))),
                }
                for choice, tensor, entry in zip(plan.choices, plan.tensors, plan.entries, strict=True)
            ],
        }
        report |= {"allocation": self.chosen.as_dict()} if self.chosen else {}
        if self.written:
            report["paths"] = [str(path) for path in self.written.paths]
            report["nonfinite"] = {name: asdict(found) for name, found in self.written.nonfinite.items()}
        return dict(as_json(report))

    def blocks(self) -> Sequence[Block]:
        """For a dry run a table of tensors, otherwise a table of types with their errors; and a summary."""
        facts = _overview(self.plan, self.chosen)
        if self.written is None:
            return [_tensors(self.plan), Lines(), Facts(facts), Lines("nothing was written (--dry-run)")]
        paths = self.written.paths
        names = f"{paths[0]}" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        facts += nonfinite_rows(self.written.nonfinite)
        facts.append(("wrote", f"{names} ({human_bytes(self.written.bytes)})"))
        return [_types(self.plan, self.written), Lines(), Facts(facts)]


def _loss_dict(loss: Narrowing | None) -> dict[str, Any]:
    return {
        "relative_rms_error": loss.relative_error if loss else None,
        "measured_weights": loss.weights if loss else 0,
    }


def _tensors(plan: Quantization) -> Table:
    """A row per tensor."""
    rows = [
        (
            choice.name,
            "×".join(map(str, tensor.shape)),
            tensor.entry.type.name,
            choice.type.name,
            entry.nbytes,
        )
        for choice, tensor, entry in zip(plan.choices, plan.tensors, plan.entries, strict=True)
    ]
    columns = (
        Column("tensor", left=True, key=True, least=24),
        Column("shape", left=True, rank=1),
        Column("from", left=True),
        Column("type", left=True),
        Column("size", human_bytes),
    )
    return Table(columns, rows)


def _types(plan: Quantization, written: Quantized) -> Table:
    """A row per type, with its relative RMS error."""
    losses: dict[str, Narrowing] = {}
    for choice in plan.choices:
        if choice.name in written.losses:
            loss = written.losses[choice.name]
            losses[choice.type.name] = losses[choice.type.name] + loss if choice.type.name in losses else loss
    rows = [
        (
            share.type,
            share.tensors,
            share.bytes,
            losses[share.type].relative_error if share.type in losses else None,
        )
        for share in plan.report.types
    ]
    columns = (
        Column("type", left=True, key=True),
        Column("tensors"),
        Column("size", human_bytes),
        Column("relative RMS error", "{:.2e}".format),
    )
    return Table(columns, rows, missing="")


def _overview(plan: Quantization, chosen: Chosen | None) -> list[tuple[str, str]]:
    """Labelled lines: source, types, importance matrix, fallbacks and notes."""
    report, parts = plan.report, len(plan.sources)
    nominal = "" if chosen else f"(nominally {report.nominal_bits_per_weight:.2f}) "
    rows = [
        ("source", shown_source(plan.sources[0].path) + (f" ({parts} shards)" if parts > 1 else "")),
        (
            "type",
            f"{chosen.target.label if chosen else plan.recipe.name}: {report.bits_per_weight:.2f} bits per weight "
            f"{nominal}in {plan.size:,} bytes" + (f", {len(plan.parts)} shards" if len(plan.parts) > 1 else ""),
        ),
        (
            "tensors",
            ", ".join(f"{share.tensors} {share.type}" for share in report.types)
            + f"; {report.kept} of them are never quantized",
        ),
    ]
    rows += [("target", chosen.sentence)] if chosen else []
    if plan.importance:
        quantized = [choice.name for choice in plan.choices if not choice.type.plain]
        without = [name for name in quantized if name not in plan.importance]
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        what = f", not {without[0]}{more}" if without else ""
        rows.append(("imatrix", f"covers {len(quantized) - len(without)} of {len(quantized)} quantized tensors{what}"))
    rows += [
        ("fallback", f"{len(fall.tensors)} tensors wanted {fall.wanted}, got {fall.type}: {fall.reason}")
        for fall in report.fall_backs
    ]
    return rows + [("note", note) for note in plan.notes]
