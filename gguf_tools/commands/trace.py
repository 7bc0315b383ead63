"""`tinyq trace`: the first intermediate in which llama.cpp and the torch reference part ways, and why."""

from __future__ import annotations

from pathlib import Path

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
    threads_option,
    timeout_option,
    write_bytes,
    write_json,
    write_text,
)
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath
from gguf_tools.errors import ThresholdError
from gguf_tools.text import one_line


@click.command(epilog=examples("trace out.gguf --reference hf/ --html trace.html"))
@click.argument("file", metavar="FILE.gguf", type=whole_source())
@click.option("--reference", type=whole_source(), metavar="SOURCE", help="Checkpoint to compare with.")
@click.option("--text", type=FilePath(), metavar="FILE", help="Text to read; by default built-in prompts.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=48, show_default=True, help="Number of tokens of the text to read."
)
@click.option("--position", type=click.IntRange(min=0), metavar="N", help="Compare only the token at this position.")
@click.option("--decode", is_flag=True, help="Also read the tokens one by one, which must give the same.")
@click.option("--routing", is_flag=True, help="Show which experts each side selected, token by token.")
@click.option(
    "--budget", is_flag=True, help="Show which tensors' quantization the KL divergence comes from: each rounded alone."
)
@click.option("--png", metavar="FILE", help="Write the errors of points × layers as a picture to FILE.")
@click.option("--html", metavar="FILE", help="Write the report as one self-contained HTML page to FILE.")
@table_options
@timeout_option
@threads_option
@force_option
@json_option
@quiet_option
def trace(
    file: Path,
    reference: Path | None,
    text: Path | None,
    tokens: int,
    position: int | None,
    decode: bool,
    routing: bool,
    budget: bool,
    png: str | None,
    html: str | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Compare every named intermediate of FILE in llama.cpp with the torch reference's, layer by layer.

    Each layer of the reference is fed with what llama.cpp's layer read, so that errors do not pile up: the first point beyond
    what rounding explains is where the fault is. Likely faults are planted in the reference one by one, and the one that gives
    what llama.cpp computed is named. If every point is explained, weights and metadata are compared where the text does not show
    them. Exits with 1 if a point is not explained, or the file differs.
    """
    from gguf_tools.evaluation.text_files import read_text
    from gguf_tools.evaluation.trace.pictures import as_html, as_png
    from gguf_tools.evaluation.trace.report import COLOURS, TraceReport
    from gguf_tools.evaluation.trace.run import trace as run
    from surgery.donors import operate_recorded

    check_outputs({"--json": json_path, "--html": html, "--png": png}, force=force)
    with stage_bars(quiet, file.name) as progress:
        found = run(
            file,
            reference,
            text=read_text(text) if text else None,
            tokens=tokens,
            position=position,
            decode=decode,
            routing=routing,
            budget=budget,
            operate=operate_recorded,
            threads=threads,
            progress=progress or (lambda *_: None),
        )
    write_json(found.as_dict(), json_path, force=force)
    if html is not None:
        write_text(as_html(found), html, "--html", force=force)
    if png is not None:
        write_bytes(as_png(found), png, force=force)
    if not quiet and not takes_stdout(json_path, html):
        show_report(TraceReport(found), COLOURS)
    if found.verdict:
        raise ThresholdError(one_line(f"{file}: {found.verdict}"))
