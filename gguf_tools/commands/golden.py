"""`tinyq golden`: what any engine must compute for a model."""

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
from gguf_tools.commands.completion import completer, family_names
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.values import FilePath


@click.command(epilog=examples("golden hf/ golden/ --points"))
@click.argument("source", metavar="[SOURCE]", required=False, type=whole_source())
@click.argument("out", metavar="[OUT/]", required=False, type=FilePath())
@click.option(
    "--all",
    "all_out",
    type=FilePath(),
    metavar="OUT/",
    help="Instead of SOURCE: a folder for each family and variant that tinyq makes small checkpoints of.",
)
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="NAME",
    shell_complete=completer(family_names),
    help="With --all: only this family; may be repeated.",
)
@click.option(
    "--points", is_flag=True, help="Every named intermediate too, routing choices and recurrent states included."
)
@click.option("--prompts", type=FilePath(), metavar="FILE", help="Prompts, one text per line.")
@click.option("--tokens", type=click.IntRange(min=0), default=8, show_default=True, help="Tokens to generate greedily.")
@force_option
@json_option
@quiet_option
def golden(
    source: Path | None,
    out: Path | None,
    all_out: Path | None,
    families: tuple[str, ...],
    points: bool,
    prompts: Path | None,
    tokens: int,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Write to the folder OUT what any engine must compute for SOURCE, a checkpoint or a GGUF.

    golden.safetensors has token ids, the logits of every position, and the greedy continuation with its margins; golden.json
    names, shapes, meanings, and the tolerances that F32, BF16 and F16 arithmetic explain; README.md says how to use them
    without tinyq.
    """
    from gguf_tools.evaluation.golden.suite import write_suite
    from gguf_tools.evaluation.golden.write import write_golden
    from gguf_tools.evaluation.text_files import read_lines
    from gguf_tools.formats.output import GOLDEN, atomic_folder

    folder = _folder(source, out, all_out)
    check_outputs({"--json": json_path}, force=force, outputs={"OUT": folder}, folders={"OUT": (GOLDEN,)})
    texts = [line for line, _ in read_lines(prompts)] if prompts else None
    made: object
    with stage_bars(quiet, folder.name) as progress, atomic_folder(folder, force=force, marks=(GOLDEN,)) as place:
        if all_out is not None:
            made = write_suite(
                place,
                points=points,
                families=families,
                progress=(lambda done, total: progress("writing models", done, total)) if progress else lambda *_: None,
            )
        else:
            assert source is not None
            made = write_golden(source, place, points=points, texts=texts, new_tokens=tokens)
        report = {**made.as_dict(), "folder": str(folder)}
    write_json(report, json_path, force=force)
    if not quiet and not takes_stdout(json_path):
        show(str(made).replace(str(place), str(folder)))


def _folder(source: Path | None, out: Path | None, all_out: Path | None) -> Path:
    """The folder to write. Raises click.UsageError unless either --all or both arguments are given."""
    if all_out is None and click.get_current_context().params["families"]:
        raise click.UsageError("--family needs --all")
    if all_out is not None:
        if source is not None:
            raise click.UsageError("--all writes its own models; give either --all OUT/ or SOURCE OUT/")
        refuse_given(("prompts", "tokens"), "and --all exclude each other: its models get the built-in prompts")
        return all_out
    if source is None or out is None:
        raise click.UsageError("SOURCE and OUT/ are needed, or --all OUT/")
    return out
