"""`tinyq diff`: what differs between two GGUF files, or between a GGUF and its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import (
    Number,
    check_outputs,
    force_option,
    json_option,
    quiet_option,
    show,
    stage_bars,
    takes_stdout,
    write_json,
)
from gguf_tools.errors import AMOUNT, ThresholdError
from gguf_tools.tables import text_table
from gguf_tools.text import one_line, shortened

if TYPE_CHECKING:
    from gguf_tools.inspection.difference.run import Difference

ROWS = 30
"""Most tensors, and most keys, in the tables."""


@click.command()
@click.argument("a", metavar="A", type=click.Path(path_type=Path))
@click.argument("b", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--within",
    type=Number(AMOUNT),
    default=0.0,
    metavar="NMSE",
    help="Count tensors as equal, whatever their types, up to this NMSE of their weights.",
)
@force_option
@json_option
@quiet_option
def diff(a: Path, b: Path, within: float, force: bool, json_path: str | None, quiet: bool) -> None:
    """Compare two GGUF files, or a GGUF and its source: metadata, tensor sets, types, and the error of every tensor.

    Tensors are listed worst first. Layers that were moved, repeated or blended are recognised by their weights, and the surgery
    that makes B from A is named. Exits with 1 if anything differs; keys that only record a file's origin (tinyq.*) do not count.
    """
    from gguf_tools.evaluation.type_check import check_model_type
    from gguf_tools.inspection.difference.run import difference

    check_outputs({"--json": json_path}, force=force)
    with stage_bars(quiet) as progress:
        found = difference(
            a,
            b,
            within=within,
            check_type=check_model_type,
            progress=(lambda done, total: progress("comparing", done, total)) if progress else lambda *_: None,
        )
    write_json(found.as_dict(), json_path, force=force)
    if not quiet and not takes_stdout(json_path):
        show(text_of(found))
    if not found.equal:
        raise ThresholdError(one_line(f"{b}: differs from {a}, first in {found.first}"))


def text_of(found: Difference) -> str:
    """The tensors and keys that differ as tables, worst first, and a summary."""
    return "\n\n".join(part for part in (_tensors(found), _metadata(found), _summary(found)) if part)


def _tensors(found: Difference) -> str:
    """A table of the `ROWS` worst tensors; empty if all are equal."""
    shown = [tensor for tensor in found.tensors if tensor.status != "equal"]
    rows = [
        (
            one_line(tensor.name),
            " → ".join(dict.fromkeys(kind for kind in tensor.types if kind)),
            tensor.status,
            f"{tensor.error.nmse:.2e}" if tensor.error and tensor.error.differing else "",
            f"{tensor.error.largest:.2e}" if tensor.error and tensor.error.differing else "",
            shortened(one_line(tensor.detail), 100) or _shapes(tensor.shapes),
        )
        for tensor in shown[:ROWS]
    ]
    if not rows:
        return ""
    more = f"\n… and {len(shown) - ROWS} more (--json lists all)" if len(shown) > ROWS else ""
    return text_table(("tensor", "type", "differs in", "NMSE", "max diff", "detail"), rows, "<<<>><") + more


def _shapes(shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]) -> str:
    texts = ["×".join(map(str, shape)) for shape in dict.fromkeys(shapes) if shape]
    return " → ".join(texts)


def _metadata(found: Difference) -> str:
    rows = [(one_line(entry.key), entry.expected or "(absent)", entry.found or "(absent)") for entry in found.metadata]
    more = f"\n… and {len(rows) - ROWS} more (--json lists all)" if len(rows) > ROWS else ""
    return text_table(("metadata", "A", "B"), rows[:ROWS], "<") + more if rows else ""


def _summary(found: Difference) -> str:
    """The summary lines: both sides, counts, layers that moved, the surgery, and the verdict."""
    counts = dict.fromkeys(("equal", "type", "values", "shape", "only in A", "only in B"), 0)
    for tensor in found.tensors:
        counts[tensor.status] += 1
    lines = [
        f"A         {found.a}",
        f"B         {found.b}",
        "tensors   " + ", ".join(f"{count} {name}" for name, count in counts.items() if count),
        *(f"note      {one_line(note)}" for note in found.notes),
        *(f"layers    {line}" for line in found.layers[:ROWS]),
    ]
    if found.surgery:
        lines.append(f'surgery   tinyq surgery A OUT --recipe "{found.surgery}"')
    lines.append("verdict   " + ("equal" if found.equal else f"different, first in {one_line(found.first)}"))
    return "\n".join(lines)
