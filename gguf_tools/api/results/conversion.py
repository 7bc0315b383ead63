"""The result of `convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_tools.conversion.plan import Conversion
from gguf_tools.conversion.write import Converted
from gguf_tools.formats.gguf import keys
from gguf_tools.sources.hub import shown_source
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.tensors.blocks import nonfinite_rows
from gguf_tools.text import as_json, human_bytes, human_count

if TYPE_CHECKING:
    from gguf_tools.allocation.choose import Chosen
    from gguf_tools.evaluation.proof import Proof


@dataclass(frozen=True, repr=False)
class ConvertResult(Shown):
    """The result of `convert`.

    `written` is None after a dry run, `chosen` unless types were selected for a size, `proof` unless requested.
    """

    conversion: Conversion
    chosen: Chosen | None = None
    written: Converted | None = None
    proof: Proof | None = None

    @property
    def path(self) -> Path | None:
        """The path of the written file, or None after a dry run."""
        return self.written.path if self.written else None

    @property
    def bytes(self) -> int:
        """The file's size in bytes, exact also after a dry run."""
        return self.written.bytes if self.written else self.conversion.size

    @property
    def target(self) -> str:
        """The llama.cpp architecture."""
        return self.conversion.plan.target.name

    @property
    def type(self) -> str:
        """The type recipe, such as q4_k_m."""
        return self.conversion.decision.name

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the checkpoint and its tokenizer, each a sentence."""
        return self.conversion.notes

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq convert --json` writes."""
        report = _plan_dict(self.conversion)
        report |= {"allocation": self.chosen.as_dict()} if self.chosen else {}
        report |= {"proof": self.proof.as_dict()} if self.proof else {}
        report |= _written_dict(self.written) if self.written else {}
        return dict(as_json(report))

    def blocks(self) -> Sequence[Block]:
        """For a dry run a table of tensors and a summary, otherwise the summary alone."""
        head = [Lines(self.chosen.sentence)] if self.chosen else []
        head += [Lines(line) for line in self.proof.lines] if self.proof else []
        facts = _overview(self.conversion)
        if self.written:
            return [*head, Facts([*facts, *_outcome(self.written)])]
        return [*head, _tensors(self.conversion), Lines(), Facts(facts), Lines("nothing was written (--dry-run)")]


def _plan_dict(conversion: Conversion) -> dict[str, Any]:
    """The entries of `as_dict()` for the plan: target, rewrites, types, sizes in bytes and each tensor."""
    made = conversion.plan
    return {
        "family": conversion.family,
        "target": made.target.name,
        "surgery": _recipe(conversion),
        "rewrites": [{"name": rewrite.name, "why": rewrite.why} for rewrite in made.rewrites],
        "extra_parameters": made.extra_parameters,
        "extra_cache": made.extra_cache,
        "approximate": [made.approximation.name] if made.approximation else [],
        "fits": [asdict(fit) for fit in made.fits],
        "type": conversion.decision.name,
        "type_reason": conversion.decision.reason,
        "notes": list(conversion.notes),
        **conversion.report.as_dict(),
        "bytes": conversion.size,
        "tensors": [
            {
                "name": choice.name,
                "shape": list(tensor.shape),
                "type": choice.type.name,
                "bytes": entry.nbytes,
                "sources": list(tensor.sources),
                "reason": choice.reason,
            }
            for choice, tensor, entry in zip(
                conversion.choices, conversion.tensors, conversion.layout.entries, strict=True
            )
        ],
    }


def _recipe(conversion: Conversion) -> str | None:
    field = conversion.metadata.get(keys.SURGERY)
    return None if field is None else str(field.value)


def _written_dict(written: Converted) -> dict[str, Any]:
    """The entries for a finished conversion: path, size, and the error of narrowing on a sample of the weights."""
    narrowing = {
        name: {
            "weights": loss.weights,
            "changed": loss.changed,
            "max_abs_change": loss.max_abs_change,
            "rms_change": loss.rms_change,
        }
        for name, loss in written.losses.items()
    }
    errors = {name: loss.relative_error for name, loss in written.by_tensor.items()}
    return {
        "path": str(written.path),
        "bytes": written.bytes,
        "narrowing": narrowing,
        "relative_rms_error": errors,
        "nonfinite": {name: asdict(found) for name, found in written.nonfinite.items()},
    }


def _tensors(conversion: Conversion) -> Table:
    """A row per tensor."""
    rows = []
    for choice, tensor, entry in zip(conversion.choices, conversion.tensors, conversion.layout.entries, strict=True):
        names = tensor.sources
        origin = "(computed)" if not names else names[0] if len(names) == 1 else f"{names[0]} + {len(names) - 1}"
        shape = "×".join(map(str, tensor.shape))
        rows.append((choice.name, shape, choice.type.name, entry.nbytes, origin))
    columns = (
        Column("tensor", left=True, key=True, least=24),
        Column("shape", left=True, rank=1),
        Column("type", left=True),
        Column("size", human_bytes),
        Column("source", left=True, rank=2, least=24, end=True),
    )
    return Table(columns, rows)


def _outcome(written: Converted) -> list[tuple[str, str]]:
    """Labelled lines: the error of narrowing, and the written file."""
    rows = []
    for name, loss in written.losses.items():
        if loss.changed and name in ("f16", "bf16"):
            said = f"{loss.changed:,} of {loss.weights:,} sampled weights change when stored as {name}, "
            rows.append(("changed", f"{said}by {loss.max_abs_change:.1e} at most"))
        elif loss.changed:
            error = f"relative RMS error {loss.relative_error:.2e} over {loss.weights:,} sampled weights"
            rows.append(("rounded", f"to {name}: {error}"))
    size = human_bytes(written.bytes)
    rows += nonfinite_rows(written.nonfinite)
    return [*rows, ("wrote", f"{written.path} ({size}); llama.cpp and the source tokenize the probe text alike")]


def _overview(conversion: Conversion) -> list[tuple[str, str]]:
    """Labelled lines: source, target, rewrites, cost, types and notes."""
    made, report, model = conversion.plan, conversion.report, conversion.plan.model
    layers = f"layers {model.spec.pattern}, {human_count(model.parameters)} parameters"
    rows = [
        ("source", f"{shown_source(conversion.source)} ({conversion.family}, {layers})"),
        ("target", made.target.name),
    ]
    if recipe := _recipe(conversion):
        rows.append(("surgery", recipe))
    if made.approximation:
        rows.append(("NOT EXACT", f"{made.approximation.name}: {made.approximation.why}"))
        rows += [(fit.label, fit.sentence) for fit in made.fits]
    rows += [("rewrite", f"{rewrite.name}: {rewrite.why}") for rewrite in made.rewrites]
    if made.extra_parameters:
        share = made.extra_parameters / (model.parameters - made.extra_parameters)
        cost = f"{human_count(made.extra_parameters)} additional parameters ({share:.1%})"
        if made.extra_cache:
            before = model.spec.cache_width - made.extra_cache
            cost += f", {model.spec.cache_width} values per token in the cache instead of {before}"
        rows.append(("cost", cost))
    types = ", ".join(f"{share.tensors} {share.type}" for share in report.types)
    rows.append(("type", f"{conversion.decision.name}: {conversion.decision.reason}"))
    rows.append(("tensors", f"{types}; {report.bits_per_weight:.2f} bits per weight, {human_bytes(conversion.size)}"))
    rows += [
        ("fallback", f"{len(fall.tensors)} tensors wanted {fall.wanted}, got {fall.type}: {fall.reason}")
        for fall in report.fall_backs
    ]
    return rows + [("note", note) for note in conversion.notes]
