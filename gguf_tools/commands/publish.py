"""`tinyq publish`: convert a checkpoint to several types, measure them, and write a folder that is ready for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gguf_tools.commands.adapter_options import lora_option
from gguf_tools.commands.card_options import card_options, page_options, parsed_weights
from gguf_tools.commands.common import (
    check_outputs,
    examples,
    given_parameters,
    nonfinite_option,
    output_options,
    stage_bars,
    table_options,
    timeout_option,
    write_report,
)
from gguf_tools.commands.completion import completer, recipe_types
from gguf_tools.commands.engine_options import engine_options
from gguf_tools.commands.source_options import source_options
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.surgery_options import WithSurgery, given_options, given_recipe
from gguf_tools.commands.type_options import tensor_type_options
from gguf_tools.commands.values import FilePath

TYPES = "q8_0,q6_k,q4_k_m"


@click.command(
    cls=WithSurgery,
    epilog=examples(
        "publish hf/ --types q8_0,q6_k,q4_k_m -o model-GGUF",
        "publish hf/ --to me/model-GGUF",
        "publish model-GGUF --to me/model-GGUF",
    ),
)
@click.argument("source", type=whole_source())
@click.option(
    "--types",
    multiple=True,
    default=(TYPES,),
    metavar="TYPES",
    shell_complete=completer(lambda: ["auto", *recipe_types()]),
    help=f"The types, with commas, or the option several times; by default {TYPES}.",
)
@click.option(
    "--out",
    "-o",
    type=FilePath(),
    metavar="DIR",
    help="The folder to write; with --to by default the repository's NAME.",
)
@click.option(
    "--to", metavar="OWNER/NAME", help="Upload the folder to this repository on the hub, when all is complete."
)
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--name", metavar="NAME", help="Beginning of the files' names; by default the model's name.")
@click.option("--base-model", metavar="OWNER/NAME", help="Hub id of SOURCE, if it is not known.")
@page_options
@tensor_type_options
@lora_option("SOURCE first")
@source_options
@click.option(
    "--calibration",
    type=FilePath(),
    metavar="FILE",
    help="Calibration text for --allow-approximate; by default a built-in one.",
)
@engine_options
@card_options
@click.option("--dry-run", is_flag=True, help="Show what would be made, with sizes, and write nothing.")
@table_options
@timeout_option
@nonfinite_option
@output_options
def publish(
    source: Path,
    types: tuple[str, ...],
    out: Path | None,
    to: str | None,
    private: bool,
    weights: tuple[str, ...],
    dry_run: bool,
    force: bool,
    json_path: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert SOURCE to several types and write a folder for the hub: files, model card, Modelfiles and checksums.

    SOURCE is read once. All files are measured against one run of the torch reference, on the same positions, and asked the same
    questions; the card has one table of all of them, and the commands for llama.cpp, Ollama, llama-cpp-python and LM Studio. The
    folder appears when all is complete, and only then it is uploaded, in one commit.

    SOURCE may also be a folder that this command wrote: it is checked and uploaded, and an interrupted upload goes on.
    """
    from gguf_tools import publish as run
    from gguf_tools.publishing.folder import CHECKSUMS, is_published

    if is_published(source):
        _refuse_others(source)
    place = out or (Path(to.rpartition("/")[2]) if to and not is_published(source) else None)
    outputs = {} if dry_run or place is None else {"--out": place}
    check_outputs({"--json": json_path}, force=force, outputs=outputs, folders={"--out": (CHECKSUMS,)})
    with stage_bars(quiet) as progress:
        result = run(
            source,
            out,
            to=to,
            private=private,
            types=types,
            weights=parsed_weights(weights),
            surgery=given_recipe(),
            dry_run=dry_run,
            force=force,
            progress=progress,
            **options,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)


_FOR_UPLOADS = ("source", "out", "to", "private", "dry_run", "force", "json_path", "quiet", "wide", "layout")


def _refuse_others(source: Path) -> None:
    """Raise click.UsageError for an option that says how to convert or measure, where SOURCE is only uploaded."""
    given = [param.opts[0] for param in given_parameters() if param.name not in _FOR_UPLOADS]
    given += [f"--{name}" for name, _ in given_options()]
    if given:
        raise click.UsageError(
            f"{source} was written by tinyq publish and is only uploaded, which has nothing to do with {given[0]}; leave it out, "
            "or give a checkpoint"
        )
