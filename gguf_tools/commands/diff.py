"""`tinyq diff`: what differs between two GGUF files, or between a GGUF and its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    show_report,
    stage_bars,
    table_options,
    takes_stdout,
    write_json,
)
from gguf_tools.commands.sources import streamed_source
from gguf_tools.commands.values import Number
from gguf_tools.errors import AMOUNT, ThresholdError
from gguf_tools.tables import Block, Column, Facts, Lines, Report, Table
from gguf_tools.text import one_line, shortened

if TYPE_CHECKING:
    from gguf_tools.inspection.difference.run import Difference
    from gguf_tools.inspection.difference.tensors import TensorDifference

ROWS = 30
"""Most tensors, and most keys, in the tables."""
LONGEST = 100
"""Most characters of a value, or of what is said about a tensor."""


@click.command(epilog=examples("diff a.gguf b.gguf --within 1e-6"))
@click.argument("a", metavar="A", type=streamed_source())
@click.argument("b", metavar="B", type=streamed_source())
@click.option(
    "--within",
    type=Number(AMOUNT),
    default=0.0,
    metavar="NMSE",
    help="Count tensors as equal, whatever their types, up to this NMSE of their weights.",
)
@table_options
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
    with stage_bars(quiet, b.name) as progress:
        found = difference(
            a,
            b,
            within=within,
            check_type=check_model_type,
            progress=(lambda done, total: progress("comparing", done, total)) if progress else lambda *_: None,
        )
    write_json(found.as_dict(), json_path, force=force)
    if not quiet and not takes_stdout(json_path):
        show_report(report(found))
    if not found.equal:
        raise ThresholdError(one_line(f"{b}: differs from {a}, first in {found.first}"))


_TENSORS = (
    Column("tensor", one_line, left=True, key=True, least=27),
    Column("type", left=True, rank=1),
    Column("difference", left=True),
    Column("NMSE", "{:.2e}".format),
    Column("max diff", "{:.2e}".format, rank=2),
    Column("detail", one_line, left=True, rank=1, least=16, wrap=True),
)
_METADATA = (
    Column("metadata", one_line, left=True, key=True, least=24),
    Column("A", one_line, left=True, least=16, wrap=True),
    Column("B", one_line, left=True, least=16, wrap=True),
)


def report(found: Difference) -> Report:
    """The tensors and keys that differ as tables, worst first, and a summary."""
    blocks: list[Block] = []
    tensors = [_row(tensor) for tensor in found.tensors if tensor.status != "equal"]
    metadata = [
        (entry.key, _value(entry.expected or "(absent)"), _value(entry.found or "(absent)")) for entry in found.metadata
    ]
    for columns, rows in ((_TENSORS, tensors), (_METADATA, metadata)):
        blocks += [Table(columns, rows, most=ROWS, missing=""), Lines()] if rows else []
    return Report([*blocks, _summary(found)])


def _row(tensor: TensorDifference) -> tuple[object, ...]:
    types = " → ".join(dict.fromkeys(kind for kind in tensor.types if kind))
    error = tensor.error if tensor.error and tensor.error.differing else None
    detail = shortened(one_line(tensor.detail), LONGEST) or _shapes(tensor.shapes)
    if error:  # the largest difference has a column of its own
        count = "all" if error.differing == error.size else f"{error.differing:,} of {error.size:,}"
        detail = f"{count}, most at {list(error.index)}"
    return tensor.name, types, tensor.status, error and error.nmse, error and error.largest, detail


def _value(text: str) -> str:
    return shortened(one_line(text), LONGEST)


def _shapes(shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]) -> str:
    texts = ["×".join(map(str, shape)) for shape in dict.fromkeys(shapes) if shape]
    return " → ".join(texts)


def _summary(found: Difference) -> Facts:
    """Both sides, counts, layers that moved, the surgery, and the verdict."""
    from gguf_tools.sources.hub import shown_source

    counts = dict.fromkeys(("equal", "type", "values", "shape", "only in A", "only in B"), 0)
    for tensor in found.tensors:
        counts[tensor.status] += 1
    facts = [
        ("A", shown_source(found.a)),
        ("B", shown_source(found.b)),
        ("tensors", ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"),
        *(("note", one_line(note)) for note in found.notes),
        *(("layers", line) for line in found.layers[:ROWS]),
    ]
    if found.surgery:
        facts.append(("surgery", f'tinyq surgery A OUT --recipe "{found.surgery}"'))
    facts.append(("verdict", "equal" if found.equal else f"different, first in {one_line(found.first)}"))
    return Facts(facts)
