"""`tinyq verify`: is this file what its source gives?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import (
    check_outputs,
    force_option,
    json_option,
    progress_bar,
    quiet_option,
    show,
    threads_option,
    write_json,
)
from gguf_tools.errors import ThresholdError
from gguf_tools.text import one_line, shortened, table

if TYPE_CHECKING:
    from gguf_tools.verification.run import Verification

ROWS = 40
"""Tensors that the table shows."""
NAMED = 4
"""Names in the closing line."""


@click.command()
@click.argument("file", metavar="FILE.gguf", type=click.Path(path_type=Path))
@click.option(
    "--source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="SOURCE",
    help="The checkpoint, or the GGUF, that FILE was made from.",
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The importance matrix that FILE was quantized with.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The tokenizer's folder, where it is not SOURCE's.",
)
@threads_option
@force_option
@json_option
@quiet_option
def verify(
    file: Path,
    source: Path,
    imatrix: Path | None,
    tokenizer: Path | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Compare every tensor and the metadata of FILE, whoever made it, with what SOURCE gives.

    A tensor is identical (byte for byte what encoding SOURCE's weights gives), consistent (what it gives with an
    importance matrix that is not known: every weight lies at the level that the encoder would have chosen), different, or
    unknown (SOURCE gives no such tensor, or its type is not encoded here). Exits with 1 if anything differs.
    """
    from gguf_tools.evaluation.type_check import check_model_type
    from gguf_tools.verification.run import file_bytes, verify
    from surgery.model import operate_text

    check_outputs({"--json": json_path}, force=force)
    with progress_bar(file_bytes(file), "verifying", quiet) as advance:
        found = verify(
            file,
            source,
            imatrix=imatrix,
            tokenizer=tokenizer,
            operate=operate_text,
            check_type=check_model_type,
            threads=threads or 0,
            progress=advance,
        )
    write_json(found.as_dict(), json_path, force=force)
    if not quiet and json_path != "-":
        show(text_of(found))
    if found.differing:
        names = ", ".join(found.differing[:NAMED])
        more = f" and {len(found.differing) - NAMED} more" if len(found.differing) > NAMED else ""
        raise ThresholdError(one_line(f"{file}: differs from what {source} gives in {names}{more}"))


def text_of(found: Verification) -> str:
    """The verdicts as tables, worst first, and what they come to."""
    parts = [_tensors(found), _metadata(found), _summary(found)]
    return "\n\n".join(part for part in parts if part)


def _tensors(found: Verification) -> str:
    """The table of the worst tensors that are not identical, ROWS at most; empty if there is none."""
    shown = [tensor for tensor in found.worst_first if tensor.verdict != "identical"]
    rows = [
        (
            one_line(tensor.name),
            tensor.type,
            tensor.verdict,
            "" if tensor.error is None else f"{tensor.error:.2e}",
            "" if tensor.expected_error is None else f"{tensor.expected_error:.2e}",
            shortened(one_line(tensor.detail), 120),
        )
        for tensor in shown[:ROWS]
    ]
    if not rows:
        return ""
    more = f"\n… and {len(shown) - ROWS} more (--json lists all)" if len(shown) > ROWS else ""
    return table(("tensor", "type", "verdict", "error", "encoder's", "what was seen"), rows, "<<<>><") + more


def _metadata(found: Verification) -> str:
    rows = [
        (one_line(entry.key), entry.verdict, entry.found or "(absent)", entry.expected or "(nothing)")
        for verdict in ("different", "unknown")
        for entry in found.metadata
        if entry.verdict == verdict
    ]
    return table(("metadata", "verdict", "the file says", "the source implies"), rows, "<") if rows else ""


def _summary(found: Verification) -> str:
    """The lines above the table: file, source, counts by verdict, notes, what made the file, and the verdict."""
    counts = found.as_dict()
    words = counts["metadata"]
    lines = [
        f"file      {found.file} ({found.architecture})",
        f"source    {found.source}" + (f" after {one_line(found.recipe)}" if found.recipe else ""),
        "tensors   "
        + ", ".join(f"{counts[kind]} {kind}" for kind in ("identical", "consistent", "different", "unknown")),
        "metadata  " + ", ".join(f"{words[kind]} {kind}" for kind in ("identical", "different", "unknown")),
        *(f"note      {one_line(note)}" for note in found.notes),
    ]
    ways = sorted({tensor.way for tensor in found.tensors if tensor.way and tensor.verdict == "identical"})
    lines += [f"made      {', or '.join(ways)}"] if ways else []
    lines.append("verdict   " + ("it differs from its source" if found.differing else _good(found)))
    return "\n".join(lines)


def _good(found: Verification) -> str:
    if found.count("unknown"):
        return "nothing differs, but not all could be compared"
    if found.count("consistent"):
        return "it is what its source gives, up to what an importance matrix or float rounding explains"
    return "it is what its source gives, byte for byte"
