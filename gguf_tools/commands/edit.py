"""`tinyq edit`: metadata and tensors' names of a GGUF."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_tools.commands.common import (
    check_outputs,
    examples,
    force_option,
    given_parameters,
    json_option,
    quiet_option,
    show_part,
    stage_bars,
    table_options,
    timeout_option,
    write_report,
)
from gguf_tools.commands.completion import keys_of_file, tensors_of_file
from gguf_tools.commands.values import FilePath


@click.command(
    epilog=examples(
        "edit model.gguf --in-place --name Tiny --set llama.context_length=8192",
        "edit model.gguf out.gguf --set tokenizer.chat_template=@chat.jinja",
        "edit model.gguf --show",
        "edit model.gguf out.gguf --from header.toml",
    )
)
@click.argument("source", metavar="FILE.gguf", type=FilePath())
@click.argument("out", metavar="[OUT.gguf]", type=FilePath(), required=False)
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="KEY[:TYPE]=VALUE",
    shell_complete=keys_of_file,
    help="Set a key. Its type is the one it has, or that llama.cpp reads; TYPE (u32, str, [f32] …) states it. Arrays are JSON; "
    "@FILE is a file's text.",
)
@click.option("--unset", multiple=True, metavar="KEY", shell_complete=keys_of_file, help="Remove a key.")
@click.option("--name", metavar="NAME", help="Set general.name.")
@click.option(
    "--rename-tensor",
    "renamed",
    multiple=True,
    metavar="OLD=NEW",
    shell_complete=tensors_of_file,
    help="Give a tensor another name.",
)
@click.option(
    "--from",
    "header",
    type=FilePath(),
    metavar="FILE.toml",
    help="Take the whole header from a file that --show printed and that was edited.",
)
@click.option("--show", "shown", is_flag=True, help="Print the header as TOML for --from, and write nothing.")
@click.option("--arrays", is_flag=True, help="With --show: long arrays whole, such as the vocabulary, to edit them.")
@click.option(
    "--in-place",
    is_flag=True,
    help="Change FILE itself: at once if the header has room, else by writing the file anew beside it.",
)
@click.option("--undo", is_flag=True, help="Undo the last in-place change of FILE.")
@click.option(
    "--prove/--no-prove",
    default=None,
    help="Before anything is written, llama.cpp must load the model with the new header if it loads it now; no weights are read. "
    "By default, what cannot be tried is said.",
)
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@table_options
@timeout_option
@force_option
@json_option
@quiet_option
def edit(
    source: Path,
    out: Path | None,
    values: tuple[str, ...],
    unset: tuple[str, ...],
    name: str | None,
    renamed: tuple[str, ...],
    header: Path | None,
    shown: bool,
    arrays: bool,
    in_place: bool,
    undo: bool,
    prove: bool | None,
    dry_run: bool,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Change metadata and tensors' names of FILE.gguf, and write OUT.gguf; no tensor's bytes change.

    Values are checked against what llama.cpp reads: types, lengths, ranges, templates that parse. Of a split model, give any
    shard; OUT.gguf is then split alike.
    """
    from gguf_tools import edit as run
    from gguf_tools.api.edit import value_files

    if name is not None:
        values = (*values, f"general.name:str={_literal(name)}")
    names = _pairs(renamed)
    if shown:
        if {param.name for param in given_parameters()} - {"source", "shown", "arrays"}:
            raise click.UsageError(
                "--show prints the header as it is, and takes no OUT and no other options but --arrays"
            )
        _show(source, arrays)
        return
    if arrays:
        raise click.UsageError("--arrays belongs to --show")
    outputs = {} if dry_run else {"OUT": out}
    check_outputs({"--json": json_path}, force=force, outputs=outputs, read=value_files(values))
    with stage_bars(quiet, (out or source).name) as progress:
        result = run(
            source,
            out,
            values,
            unset=unset,
            rename=names,
            header=header,
            in_place=in_place,
            undo=undo,
            prove=prove,
            dry_run=dry_run,
            force=force,
            progress=progress,
        )
    write_report(result, json_path, force=force, shown=dry_run or not quiet)


def _literal(text: str) -> str:
    """A text as a value that is not the name of a file."""
    return f"@{text}" if text.startswith("@") else text


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Old and new names of OLD=NEW. Raises click.UsageError for other forms, and for a name given twice."""
    found: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old or not new:
            raise click.UsageError(f"--rename-tensor {text}: expected OLD=NEW")
        if old in found:
            raise click.UsageError(f"--rename-tensor {old} is given twice")
        found[old] = new
    return found


def _show(source: Path, arrays: bool) -> None:
    """Print the header as TOML."""
    from gguf_tools.editing.header_toml import header_toml
    from gguf_tools.formats.gguf.split import joined_header, read_parts
    from gguf_tools.sources.hub import Reading, local_source

    header = joined_header(read_parts(local_source(source, Reading.HEADERS)))
    for line in header_toml(header, header.tensors, whole=arrays):
        show_part(line + "\n")
