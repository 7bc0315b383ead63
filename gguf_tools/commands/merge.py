"""`tinyq merge`: the shards of a GGUF in one file."""

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


@click.command(epilog=examples("merge model-00001-of-00003.gguf model.gguf"))
@click.argument("source", metavar="SHARD.gguf", type=whole_source())
@click.argument("out", metavar="OUT.gguf", type=FilePath())
@click.option("--dry-run", is_flag=True, help="Show the size of the file, and write nothing.")
@table_options
@force_option
@json_option
@quiet_option
def merge(source: Path, out: Path, dry_run: bool, force: bool, json_path: str | None, quiet: bool) -> None:
    """Merge the shards of a model into OUT.gguf; SHARD.gguf is any of them, and the others lie beside it.

    A set with a missing shard, or with one of another model, is refused. Merging what `tinyq split` wrote gives the file that was
    split, byte for byte.
    """
    from gguf_tools import merge as run

    check_outputs({"--json": json_path}, force=force, outputs={} if dry_run else {"OUT": out})
    with stage_bars(quiet, out.name) as progress:
        result = run(source, out, dry_run=dry_run, force=force, progress=progress)
    write_report(result, json_path, force=force, shown=dry_run or not quiet)
