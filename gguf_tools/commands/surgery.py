"""`tinyq surgery`: layer surgery on a checkpoint or a GGUF."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.adapter_options import lora_option
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    nonfinite_option,
    output_options,
    stage_bars,
    table_options,
    write_report,
)
from gguf_tools.commands.sources import download_option, streamed_source
from gguf_tools.commands.surgery_options import WithSurgery, given_recipe
from gguf_tools.commands.values import FilePath


@click.command(
    cls=WithSurgery,
    epilog=examples(
        'surgery hf/ operated/ --recipe "swap(12:13) + bridge(5:20)"', "surgery model.gguf --in-place --swap 1:3"
    ),
)
@click.argument("source", type=streamed_source())
@click.argument("out", type=FilePath(), required=False)
@lora_option("SOURCE, a checkpoint, first")
@click.option("--in-place", is_flag=True, help="Change SOURCE, a GGUF, itself; only for reordering whole layers.")
@click.option("--undo", is_flag=True, help="Undo the last in-place change of SOURCE.")
@click.option("--save-recipe", type=FilePath(), metavar="FILE", help="Write the ops to a TOML file.")
@click.option(
    "--text",
    type=FilePath(),
    metavar="FILE",
    help="Text for ops that measure (--delete auto:N, --drop-experts auto:N%); by default a built-in one.",
)
@click.option("--dry-run", is_flag=True, help="Show old and new layers side by side, and write nothing.")
@click.option(
    "--assume-independent-layers",
    is_flag=True,
    help="Accept a GGUF of an architecture unknown to tinyq; you have checked that its layers do not depend on their positions.",
)
@click.option(
    "--prove/--no-prove",
    default=None,
    help="Run a GGUF and its result in llama.cpp before that appears: every layer must compute what was asked for. "
    "By default below 1 GB.",
)
@download_option
@table_options
@nonfinite_option
@output_options
def surgery(
    source: Path,
    out: Path | None,
    lora: tuple[str, ...],
    in_place: bool,
    undo: bool,
    save_recipe: Path | None,
    text: Path | None,
    dry_run: bool,
    assume_independent_layers: bool,
    prove: bool | None,
    allow_nonfinite: bool,
    force: bool,
    threads: int | None,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Apply layer surgery to SOURCE and write OUT: a folder for a checkpoint, a GGUF for a GGUF.

    Whole layers of a GGUF are copied unchanged, quantized or not; blended or scaled tensors are encoded again in their type.
    If an in-place change was interrupted, --in-place completes it first; without ops it does only that.
    """
    from gguf_tools import operate
    from gguf_tools.sources.checkpoint import MARKS

    written = {} if dry_run else {"OUT": out, "--save-recipe": save_recipe}
    check_outputs(
        {"--json": json_path}, force=force, outputs=written, folders={} if source.is_file() else {"OUT": MARKS}
    )
    with stage_bars(quiet, (out or source).name) as progress:
        result = operate(
            source,
            out,
            given_recipe(),
            lora=lora,
            in_place=in_place,
            undo=undo,
            save_recipe=save_recipe,
            text=text,
            dry_run=dry_run,
            allow_nonfinite=allow_nonfinite,
            assume_independent_layers=assume_independent_layers,
            prove=prove,
            force=force,
            threads=threads,
            progress=progress,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)
