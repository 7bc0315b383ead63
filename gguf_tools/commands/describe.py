"""`tinyq describe`: describe a checkpoint that no family knows."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    json_option,
    quiet_option,
    refuse_given,
    show,
    stage_bars,
    takes_stdout,
    write_json,
)
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath
from gguf_tools.errors import InputError, ThresholdError
from gguf_tools.machine import MOST_COUNT


@click.command(epilog=examples("describe best.pt -o model.toml --golden golden.npz"))
@click.argument("checkpoint", type=whole_source())
@click.option("--out", "-o", type=FilePath(), metavar="FILE", help="Where to write it; by default stdout.")
@click.option(
    "--golden",
    type=FilePath(),
    metavar="FILE",
    help="Logits of the model's own code (.npz or .safetensors), from which the choices are solved.",
)
@click.option("--oracle", metavar="MODULE:FUNCTION", help="The model's own code: a function of a list of token ids.")
@click.option(
    "--check",
    "checked",
    type=FilePath(),
    metavar="FILE",
    help="Say what this description lacks for CHECKPOINT, and write nothing.",
)
@click.option(
    "--context-length",
    type=click.IntRange(1, MOST_COUNT),
    metavar="N",
    help="The number of positions that the model was trained for.",
)
@force_option
@json_option
@quiet_option
def describe(
    checkpoint: Path,
    out: Path | None,
    golden: Path | None,
    oracle: str | None,
    checked: Path | None,
    context_length: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Describe CHECKPOINT, whose names and layout no family knows, for `tinyq convert --describe`.

    Roles are found by shapes and by what repeats. What these do not tell has a usual value and the other candidates in a
    comment, or is solved from logits of the model's own code (--golden, --oracle); docs/describe.md shows how to write them.
    Exits with 1 if no choice explains them.
    """
    check_outputs({"--json": json_path}, force=force, outputs={"-o": out})
    if checked is not None:
        if out is not None or golden is not None or oracle is not None:
            raise InputError("--check compares a description with the tensors alone; omit -o, --golden and --oracle")
        refuse_given(("context_length",), "and --check exclude each other: a description states its own")
        _check(checked, checkpoint, json_path, force, quiet)
        return
    from gguf_tools import describe as run

    with stage_bars(quiet, checkpoint.name) as progress:
        result = run(
            checkpoint,
            out,
            golden=golden,
            oracle=oracle,
            context_length=context_length,
            force=force,
            progress=progress,
        )
    write_json(result.as_dict(), json_path, force=force)
    alone = out is None and result.usable and not takes_stdout(json_path)
    if not quiet and not takes_stdout(json_path):
        show(str(result), err=alone)
    result.require()
    if alone:
        show(result.text.rstrip("\n"))


def _check(path: Path, checkpoint: Path, json_path: str | None, force: bool, quiet: bool) -> None:
    """Report what a description lacks; ThresholdError if it is anything."""
    from gguf_tools.description.build import problems
    from gguf_tools.description.toml import read_description
    from gguf_tools.sources.checkpoint import open_checkpoint
    from gguf_tools.sources.restore import restore

    found = list(problems(read_description(path), restore(open_checkpoint(checkpoint, described=True))))
    write_json({"path": str(path), "checkpoint": str(checkpoint), "problems": found}, json_path, force=force)
    if found:
        if not takes_stdout(json_path):
            show("\n".join(found))
        raise ThresholdError(f"{path}: does not describe {checkpoint} completely; correct the {len(found)} problems")
    if not quiet and not takes_stdout(json_path):
        show(f"{path} describes every tensor of {checkpoint}")
