"""`tinyq verify`: check a GGUF against its source, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.adapter_options import lora_option
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    progress_bar,
    quiet_option,
    show_report,
    table_options,
    takes_stdout,
    threads_option,
    write_json,
)
from gguf_tools.commands.sources import download_option, streamed_source, whole_source
from gguf_tools.commands.values import FilePath
from gguf_tools.errors import ThresholdError
from gguf_tools.tables import Column, Facts, Lines, Report, Table
from gguf_tools.text import one_line

if TYPE_CHECKING:
    from gguf_tools.verification.run import Verification

ROWS = 40
"""Most tensors in the table."""
NAMED = 4
"""Most names in the final error line."""


@click.command(epilog=examples("verify out.gguf --source hf/"))
@click.argument("file", metavar="FILE.gguf", type=whole_source())
@click.option(
    "--source",
    required=True,
    type=streamed_source(),
    metavar="SOURCE",
    help="The checkpoint or GGUF that FILE was converted or quantized from.",
)
@lora_option("SOURCE; by default those that FILE records")
@click.option(
    "--imatrix",
    type=FilePath(),
    metavar="FILE",
    help="The importance matrix that FILE was quantized with.",
)
@click.option(
    "--tokenizer",
    type=FilePath(file_okay=False),
    metavar="DIR",
    help="Folder of the tokenizer, if it is not SOURCE's.",
)
@download_option
@table_options
@threads_option
@force_option
@json_option
@quiet_option
def verify(
    file: Path,
    source: Path,
    lora: tuple[str, ...],
    imatrix: Path | None,
    tokenizer: Path | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Compare every tensor and the metadata of FILE, written by any tool, with what SOURCE gives.

    A tensor is identical (its bytes equal those from encoding SOURCE's weights), consistent (possible with an unknown
    importance matrix: every weight has the quantization level that the encoder selects), different, or unknown (SOURCE has no
    such tensor, or tinyq cannot encode its type). Exits with 1 if anything differs.
    """
    from gguf_tools.api.options import adapters_of
    from gguf_tools.evaluation.type_check import check_model_type
    from gguf_tools.sources.hub import shown_source
    from gguf_tools.verification.run import file_bytes, verify
    from surgery.donors import operate_recorded

    check_outputs({"--json": json_path}, force=force)
    with progress_bar(file_bytes(file), f"verifying {file.name}", quiet) as advance:
        found = verify(
            file,
            source,
            adapters=adapters_of(lora),
            imatrix=imatrix,
            tokenizer=tokenizer,
            operate=operate_recorded,
            check_type=check_model_type,
            threads=threads or 0,
            progress=advance,
        )
    write_json(found.as_dict(), json_path, force=force)
    if not quiet and not takes_stdout(json_path):
        show_report(report(found))
    if found.differing:
        names = ", ".join(found.differing[:NAMED])
        more = f" and {len(found.differing) - NAMED} more" if len(found.differing) > NAMED else ""
        raise ThresholdError(one_line(f"{file}: differs from its source {shown_source(source)} in {names}{more}"))


_TENSORS = (
    Column("tensor", one_line, left=True, key=True, least=24),
    Column("type", left=True, rank=1),
    Column("verdict", left=True),
    Column("error", "{:.2e}".format),
    Column("encoder's error", "{:.2e}".format),
    Column("reason", one_line, left=True, least=24, wrap=True),
)
_METADATA = (
    Column("metadata", one_line, left=True, key=True, least=24),
    Column("verdict", left=True),
    Column("found", left=True, least=20),
    Column("expected from source", left=True, least=20),
)


def report(found: Verification) -> Report:
    """The verdicts on tensors and metadata as tables, worst first, and a summary."""
    tables = [table for table in (_tensors(found), _metadata(found)) if table.rows]
    return Report([*(block for table in tables for block in (table, Lines())), Facts(_summary(found))])


def _tensors(found: Verification) -> Table:
    """The tensors that are not identical, the worst first, of which `ROWS` are shown."""
    rows = [
        (
            tensor.name,
            tensor.type,
            tensor.verdict,
            tensor.error,
            tensor.expected_error,
            tensor.detail,
        )
        for tensor in found.worst_first
        if tensor.verdict != "identical"
    ]
    return Table(_TENSORS, rows, most=ROWS, missing="")


def _metadata(found: Verification) -> Table:
    rows = [
        (entry.key, entry.verdict, entry.found or "(absent)", entry.expected or "(nothing)")
        for verdict in ("different", "unknown")
        for entry in found.metadata
        if entry.verdict == verdict
    ]
    return Table(_METADATA, rows)


def _summary(found: Verification) -> list[tuple[str, str]]:
    """The summary's labelled lines: file, source, counts by verdict, notes, possible encoders, and the overall verdict."""
    from gguf_tools.sources.hub import shown_source

    counts = found.as_dict()
    words = counts["metadata"]
    lines = [
        ("file", f"{found.file} ({found.architecture})"),
        ("source", shown_source(found.source) + (f" after {one_line(found.recipe)}" if found.recipe else "")),
        (
            "tensors",
            ", ".join(f"{counts[kind]} {kind}" for kind in ("identical", "consistent", "different", "unknown")),
        ),
        ("metadata", ", ".join(f"{words[kind]} {kind}" for kind in ("identical", "different", "unknown"))),
        *(("note", one_line(note)) for note in found.notes),
    ]
    ways = sorted({tensor.way for tensor in found.tensors if tensor.way and tensor.verdict == "identical"})
    lines += [("encoding", ", or ".join(ways))] if ways else []
    return [*lines, ("verdict", "differs from its source" if found.differing else _good(found))]


def _good(found: Verification) -> str:
    """The verdict where nothing differs."""
    if found.count("unknown"):
        return "nothing differs, but not everything could be compared"
    unread = any(entry.verdict == "unknown" and entry.key.startswith("tokenizer.") for entry in found.metadata)
    what = "the weights match their source" if unread else "matches its source"
    how = "up to differences that an importance matrix or float rounding explains"
    rest = "; the vocabulary could not be compared" if unread else ""
    return f"{what}, {how if found.count('consistent') else 'byte for byte'}{rest}"
