"""`tinyq inspect`: describe a checkpoint or a GGUF."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import check_outputs, examples, force_option, json_option, table_options, write_report


@click.command("inspect", epilog=examples("inspect model.gguf", "inspect hf/ --json -"))
@click.argument("path", type=click.Path(path_type=Path))
@table_options
@force_option
@json_option
def inspect_command(path: Path, force: bool, json_path: str | None) -> None:
    """Describe PATH, a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, and how it would be converted.

    No weights are read.
    """
    from gguf_tools import inspect

    check_outputs({"--json": json_path}, force=force)
    found = inspect(path)
    write_report(found, json_path, force=force)
