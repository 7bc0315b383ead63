"""`tinyq inspect`: describe a checkpoint or a GGUF."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import check_outputs, examples, force_option, json_option, table_options, write_report
from gguf_tools.commands.sources import headers_source


@click.command("inspect", epilog=examples("inspect model.gguf", "inspect hf/ --json -", "inspect Qwen/Qwen3-0.6B"))
@click.argument("path", type=headers_source())
@table_options
@force_option
@json_option
def inspect_command(path: Path, force: bool, json_path: str | None) -> None:
    """Describe PATH, a checkpoint or a GGUF: layers, sizes, types, tokenizer, provenance, and how it would be converted.

    PATH may be a repository on the hub, ORG/NAME[@REVISION], or a file in one, ORG/NAME/FILE.gguf. No weights are read.
    """
    from gguf_tools import inspect

    check_outputs({"--json": json_path}, force=force)
    found = inspect(path)
    write_report(found, json_path, force=force)
