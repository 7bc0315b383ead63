"""`tinyq split`: a GGUF in shards."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    stage_bars,
    table_options,
    write_report,
)
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath


@click.command(
    epilog=examples("split model.gguf parts/model --max-size 2G", "split model.gguf model --max-tensors 128")
)
@click.argument("source", metavar="FILE.gguf", type=whole_source())
@click.argument("out", metavar="OUT_PREFIX", type=FilePath())
@click.option(
    "--max-size", metavar="SIZE", help="Most tensor data of a shard, such as 2G (powers of 1000; 2GiB of 1024)."
)
@click.option("--max-tensors", type=click.IntRange(min=1), metavar="N", help="Most tensors of a shard.")
@click.option("--dry-run", is_flag=True, help="List the shards with their sizes, and write nothing.")
@table_options
@force_option
@json_option
@quiet_option
def split(
    source: Path,
    out: Path,
    max_size: str | None,
    max_tensors: int | None,
    dry_run: bool,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Split FILE.gguf into OUT_PREFIX-00001-of-0000N.gguf and so on, which llama.cpp opens by the first.

    The shards are those of llama.cpp's gguf-split: tensors in their order, a shard as full as the limit allows, all metadata in
    the first. A tensor larger than --max-size has a shard of its own. FILE.gguf may be a shard, to divide anew.
    """
    from gguf_tools import split as run

    check_outputs({"--json": json_path}, force=force, outputs={} if dry_run else {"OUT_PREFIX": out})
    with stage_bars(quiet, out.name) as progress:
        result = run(
            source,
            out,
            max_size=max_size,
            max_tensors=max_tensors,
            dry_run=dry_run,
            force=force,
            progress=progress,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)
