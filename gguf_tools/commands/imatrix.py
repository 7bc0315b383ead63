"""`tinyq imatrix`: collect an importance matrix for quantization."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import (
    check_outputs,
    examples,
    output_options,
    refuse_given,
    show_report,
    stage_bars,
    table_options,
    takes_stdout,
    timeout_option,
    write_json,
)
from gguf_tools.commands.engine_options import gpu_layers_option
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath
from gguf_tools.errors import InputError
from gguf_tools.tables import Column, Facts, Lines, Report, Table
from gguf_tools.text import human_bytes

if TYPE_CHECKING:
    from quant.imatrix import Coverage, ImportanceMatrix

SHOWN = 10


@click.command(epilog=examples("imatrix model.gguf text.txt -o model.imatrix.gguf"))
@click.argument("model", metavar="[MODEL.gguf", required=False, type=whole_source())
@click.argument("text", metavar="TEXT]", required=False, type=FilePath())
@click.option("--out", "-o", type=FilePath(), metavar="FILE", help="Where to write the matrix.")
@click.option(
    "--merge",
    type=FilePath(),
    multiple=True,
    metavar="FILE",
    help="Add this matrix (GGUF or old .dat); repeatable. Sufficient without MODEL and TEXT.",
)
@click.option("--chunk", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens per chunk of text.")
@click.option("--chunks", type=click.IntRange(min=1), help="Most chunks to process.")
@click.option("--process-output", is_flag=True, help="Collect statistics for output.weight too.")
@click.option("--parse-special", is_flag=True, help='Parse special tokens ("<|…|>") in the text.')
@gpu_layers_option
@table_options
@timeout_option
@output_options
def imatrix(
    model: Path | None,
    text: Path | None,
    out: Path | None,
    merge: tuple[Path, ...],
    chunk: int,
    chunks: int | None,
    process_output: bool,
    parse_special: bool,
    gpu_layers: int,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Collect the mean squared activation of each weight column of MODEL over TEXT, per expert, for convert and quantize.

    Writes llama.cpp's GGUF format. Without MODEL and TEXT it merges, or only shows, the matrices given by --merge.
    """
    from gguf_tools.evaluation.imatrix import CollectRequest, collect
    from gguf_tools.formats.gguf.imatrix import in_tokens, read_imatrix, write_imatrix
    from gguf_tools.formats.gguf.source import open_gguf
    from gguf_tools.formats.watch import Watch
    from gguf_tools.runtime.process import RuntimeOptions
    from gguf_tools.sources.inputs import source_files
    from quant.imatrix import coverage
    from quant.imatrix import merge as merged
    from quant.recipes import TensorFacts

    if model is not None and text is None:
        raise InputError(f"{model}: given without a TEXT; give MODEL.gguf and TEXT, or only --merge FILE")
    if model is None and not merge:
        raise InputError("there is no model and no matrix; give MODEL.gguf and TEXT, or --merge FILE")
    if model is None:
        refuse_given(_COLLECTING, "needs MODEL.gguf and TEXT: matrices are merged as they are")
    if model is not None and out is None:
        raise InputError("the output file is missing; give it with -o FILE")
    check_outputs({"--json": json_path}, force=force, outputs={"--out": out})
    read = [*merge, *(source_files(model) if model else ()), *([text] if text else ())]
    watch = Watch.over(read)
    matrices = [in_tokens(read_imatrix(path)) for path in merge]
    if model is not None and text is not None:
        facts = [TensorFacts(name, tensor.shape) for name, tensor in open_gguf(model).tensors.items()]
        for given in matrices:
            given.importance(facts)
        request = CollectRequest(
            model=model,
            text=text,
            chunk=chunk,
            chunks=chunks,
            process_output=process_output,
            parse_special=parse_special,
        )
        options = RuntimeOptions(threads=threads, gpu_layers=gpu_layers)
        with stage_bars(quiet, model.name) as progress:
            matrices.append(collect(request, options, progress and partial(progress, "tokens")))
    matrix = merged(matrices)
    found = coverage(matrix)
    size = write_imatrix(matrix, out, force=force, check=watch.check) if out is not None else None
    write_json(report_dict(matrix, found, out, size), json_path, force=force)
    if not quiet and not takes_stdout(json_path):
        wrote = [("wrote", f"{out} ({human_bytes(size)})")] if out is not None and size is not None else []
        show_report(report(matrix, found, wrote))


_COLLECTING = ("chunk", "chunks", "process_output", "parse_special", "gpu_layers", "threads", "timeout")
"""The parameters that say how a text is read."""


def report_dict(
    matrix: ImportanceMatrix, found: tuple[Coverage, ...], out: Path | None, size: int | None
) -> dict[str, Any]:
    """The JSON report: sizes, counts and the coverage of each tensor, the least covered first."""
    return {
        "path": str(out) if out else None,
        "size": size,
        "tensors": len(matrix.entries),
        "chunks": matrix.chunks,
        "chunk_size": matrix.chunk_size,
        "datasets": list(matrix.datasets),
        "tokens": max((int(entry.counts.max()) for entry in matrix.entries.values()), default=0),
        "unseen_experts": sum(one.unseen for one in found),
        "coverage": [vars(one) for one in found],
    }


_COLUMNS = (
    Column("fewest tokens", left=True, key=True, least=24),
    Column("tokens"),
    Column("of the expert"),
    Column("experts"),
    Column("experts without a token"),
)


def report(matrix: ImportanceMatrix, found: tuple[Coverage, ...], wrote: list[tuple[str, str]]) -> Report:
    """A table of the tensors and experts with the fewest tokens, and a summary that ends with `wrote`."""
    rows = [
        (
            one.name,
            one.tokens,
            one.matrix if one.matrices > 1 else None,
            one.matrices if one.matrices > 1 else None,
            one.unseen or None,
        )
        for one in found
    ]
    unseen = sum(one.unseen for one in found)
    facts = [("matrix", f"{len(found)} tensors, {matrix.chunks} chunks of {matrix.chunk_size} tokens")]
    facts += [("text", ", ".join(matrix.datasets))] if matrix.datasets else []
    if unseen:
        lost = (
            f"{unseen} expert matrices got no token and are quantized as if without an importance matrix; use a longer or more "
            "varied text"
        )
        facts.append(("note", lost))
    return Report([Table(_COLUMNS, rows, most=SHOWN, missing=""), Lines(), Facts([*facts, *wrote])])
