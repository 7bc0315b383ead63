"""`tinyq quantize`: a GGUF into a smaller type."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import (
    check_outputs,
    nonfinite_option,
    output_options,
    stage_bars,
    timeout_option,
    write_report,
)
from gguf_tools.commands.type_options import type_options


@click.command()
@click.argument("source", metavar="IN.gguf", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="TYPE", required=False)
@type_options
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text to measure on for --target-bpw and --target-size; by default what the model itself writes.",
)
@click.option("--allow-requantize", is_flag=True, help="Quantize what is quantized already, which loses more.")
@click.option("--keep-split", is_flag=True, help="As many parts as the source has, with the same tensors in each.")
@click.option("--split-max-size", metavar="SIZE", help="Split into parts of at most SIZE tensor data, such as 2G.")
@click.option("--dry-run", is_flag=True, help="Show types and the exact size, and write nothing.")
@timeout_option
@nonfinite_option
@output_options
def quantize(
    source: Path,
    out: Path,
    type_name: str | None,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    pure: bool,
    imatrix: Path | None,
    target_bpw: float | None,
    target_size: str | None,
    calibration: Path | None,
    allow_requantize: bool,
    keep_split: bool,
    split_max_size: str | None,
    dry_run: bool,
    allow_nonfinite: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Quantize a GGUF (any part of it where it is split) to TYPE: q8_0, q6_k, q4_k_m … in either case.

    The tensors' bytes are those that llama.cpp's own quantizer writes. With --target-bpw or --target-size instead of TYPE,
    the types of all tensors are chosen: the model is run with each tensor alone rounded, and the bits go where that hurts.
    """
    from gguf_tools import quantize as run

    check_outputs({"--json": json_path}, force=force, outputs={} if dry_run else {"OUT": out})
    with stage_bars(quiet) as progress:
        result = run(
            source,
            out,
            type_name,
            tensor_types=tensor_types,
            output_type=output_type,
            embedding_type=embedding_type,
            pure=pure,
            imatrix=imatrix,
            target_bpw=target_bpw,
            target_size=target_size,
            calibration=calibration,
            allow_requantize=allow_requantize,
            keep_split=keep_split,
            split_max_size=split_max_size,
            dry_run=dry_run,
            allow_nonfinite=allow_nonfinite,
            force=force,
            threads=threads,
            progress=progress,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)
