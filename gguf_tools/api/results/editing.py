"""The results of `edit`, `split` and `merge`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.editing.plan import EditPlan
from gguf_tools.editing.split import Reshaped
from gguf_tools.editing.values import type_of
from gguf_tools.formats.gguf.values import Field, ValueType
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.text import human_bytes, printable, shortened


@dataclass(frozen=True, repr=False)
class ReshapeResult(Shown):
    """The result of `split` and `merge`: the files at `paths`, which a dry run (`written` is False) only names."""

    plan: Reshaped
    paths: tuple[Path, ...]
    written: bool

    @property
    def bytes(self) -> int:
        """Bytes of all files together, exact also after a dry run."""
        return sum(file.size for file in self.plan.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the source is not in the output, each a sentence."""
        return self.plan.notes

    def as_dict(self) -> dict[str, Any]:
        """The report that `--json` writes."""
        return {
            "source": [str(part.path) for part in self.plan.sources],
            "written": self.written,
            "bytes": self.bytes,
            "files": [
                {"path": str(path), "bytes": file.size, "tensors": len(file.tensors)}
                for path, file in zip(self.paths, self.plan.files, strict=True)
            ],
            "notes": list(self.notes),
        }

    def blocks(self) -> Sequence[Block]:
        """A row per file, and what was written."""
        rows = [
            (path.name, len(file.tensors), file.layout.data_bytes, file.size)
            for path, file in zip(self.paths, self.plan.files, strict=True)
        ]
        table = Table(
            (
                Column("file", left=True, key=True, least=12),
                Column("tensors"),
                Column("data", human_bytes, rank=1),
                Column("size", human_bytes),
            ),
            rows,
            most=40,
        )
        facts = [("note", note) for note in self.notes]
        if not self.written:
            return [table, Lines(), *([Facts(facts)] if facts else []), Lines("nothing was written (--dry-run)")]
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return [table, Lines(), Facts([*facts, ("wrote", f"{self.paths[0]}{more} ({human_bytes(self.bytes)})")])]


@dataclass(frozen=True, repr=False, kw_only=True)
class EditResult(Shown):
    """The result of `edit`.

    `paths` are the files that were written, empty after a dry run; `bytes` the number of bytes written. `in_place` is "header"
    for a change in the header's own room, "rewritten" for a file that was written anew under its name, None for an output
    elsewhere. `proof` is what llama.cpp made of the edit, in a sentence. `plan` is None after an undo, when `undone` describes
    the undone change, and after only completing an interrupted one, which `completed` describes ("" if there was none).
    """

    source: Path
    plan: EditPlan | None = None
    paths: tuple[Path, ...] = ()
    proof: str | None = None
    in_place: str | None = None
    bytes: int | None = None
    undone: str | None = None
    completed: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What may not be what was meant, each a sentence."""
        return self.plan.notes if self.plan else ()

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq edit --json` writes; an array has its first items and its length."""
        report: dict[str, Any] = {"source": str(self.source)}
        if self.plan is None:
            return report | ({"undone": self.undone} if self.undone is not None else {"completed": self.completed})
        report |= {
            "paths": [str(path) for path in self.paths],
            "in_place": self.in_place,
            "changes": [
                {"key": change.key, "old": _as_json(change.old), "new": _as_json(change.new)}
                for change in self.plan.changes
            ],
            "renamed": dict(self.plan.renamed),
            "notes": list(self.notes),
            "proof": self.proof,
        }
        return report | ({} if self.bytes is None else {"bytes": self.bytes})

    def blocks(self) -> Sequence[Block]:
        """A row per change, the notes, and what was written."""
        if self.plan is None:
            if self.undone is not None:
                return [Facts([("undone", f"{self.undone} in {self.source}")])]
            done = (
                f"the interrupted change of {self.source}: {self.completed}"
                if self.completed
                else "nothing to complete"
            )
            return [Facts([("completed", done)])]
        rows = [(change.key, _brief(change.old), _brief(change.new)) for change in self.plan.changes]
        rows += [(f"tensor {old}", old, new) for old, new in self.plan.renamed.items()]
        columns = (
            Column("key", left=True, key=True, least=16, end=True),
            Column("old", left=True, least=10),
            Column("new", left=True, least=10),
        )
        blocks: list[Block] = [Table(columns, rows, most=60), Lines()] if rows else []
        facts = [("note", note) for note in self.notes]
        facts += [("llama.cpp", self.proof.removeprefix("llama.cpp "))] if self.proof else []
        if not rows:
            facts.append(("changes", "none: the file says all this already"))
            if self.in_place:
                return [Facts(facts)]
        if self.bytes is None:
            return [*blocks, *([Facts(facts)] if facts else []), Lines("nothing was written (--dry-run)")]
        return [*blocks, Facts([*facts, ("wrote", self._written())])]

    def _written(self) -> str:
        """What was written, in words."""
        where = {"header": " in the header", "rewritten": "; the header had no room, so the file was written anew"}
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        size = human_bytes(self.bytes or 0)
        if self.in_place == "rewritten":
            return f"{self.paths[0]} ({size}){where['rewritten']}"
        return f"{self.paths[0]}{more} ({size}{where.get(self.in_place or '', '')})"


SHOWN_ITEMS = 8
"""Items of an array in a report."""


def _as_json(field: Field | None) -> dict[str, Any] | None:
    """A value with its type for JSON; NaN and infinity, which JSON has not, as text."""
    if field is None:
        return None
    kind = type_of(field)
    if kind.element is None:
        return {"type": str(kind), "value": _plain(field.value)}
    return {
        "type": str(kind),
        "length": len(field.value),
        "first": [_plain(value) for value in field.value[:SHOWN_ITEMS]],
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _brief(field: Field | None) -> str | None:
    """A value with its type in a cell of a table."""
    if field is None:
        return None
    kind = type_of(field)
    if kind.element is None:
        text = printable(field.value) if isinstance(field.value, str) else str(_plain(field.value))
        return shortened(text, 200) if kind.type is ValueType.STRING else f"{text} ({kind})"
    first = ", ".join(printable(str(value)) for value in field.value[:SHOWN_ITEMS])
    more = ", …" if len(field.value) > SHOWN_ITEMS else ""
    return shortened(f"{len(field.value)} × {str(kind)[1:-1]}: {first}{more}", 200)
