"""`tinyq check`: hold an engine to golden values."""

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
    table_options,
    threads_option,
    timeout_option,
    write_report,
)
from gguf_tools.commands.values import FilePath, Number
from gguf_tools.errors import AMOUNT, ThresholdError
from gguf_tools.text import one_line


@click.command(epilog=examples("check golden/ --server http://127.0.0.1:8080"))
@click.argument("golden", metavar="GOLDEN/", type=FilePath())
@click.option(
    "--dump",
    type=FilePath(),
    metavar="FILE",
    help="The engine's arrays under the golden names (.safetensors or .npz), as many as it can give.",
)
@click.option("--gguf", type=FilePath(), metavar="FILE", help="Run this GGUF in llama.cpp.")
@click.option(
    "--server", metavar="URL", help="A running server that returns log probabilities: llama.cpp's, or OpenAI-like."
)
@click.option(
    "--command",
    metavar="CMD",
    help="A program that prints token ids; {model}, {tokens} and {count} are replaced, as in 'engine {model} {tokens}'.",
)
@click.option("--model", default="", metavar="NAME", help="What {model} stands for, or the name to give to the server.")
@click.option(
    "--arithmetic",
    type=click.Choice(["f32", "bf16", "f16"]),
    default="f32",
    show_default=True,
    help="Of the engine; decides the tolerances.",
)
@click.option(
    "--max-nmse",
    type=Number(AMOUNT),
    metavar="X",
    help="Tolerance of every array, for the golden ones.",
)
@table_options
@timeout_option
@threads_option
@force_option
@json_option
@quiet_option
def check(
    golden: Path,
    dump: Path | None,
    gguf: Path | None,
    server: str | None,
    command: str | None,
    model: str,
    arithmetic: str,
    max_nmse: float | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Compare an engine with the golden values in the folder GOLDEN, written by tinyq golden.

    Says pass, or the first thing that differs (prompt, position, point, expected and found values), and exits with 1 then.
    --timeout also bounds each answer of a server and each run of a command.
    """
    from gguf_tools.evaluation.golden.check import check_arrays
    from gguf_tools.evaluation.golden.engines import check_command, check_gguf
    from gguf_tools.evaluation.golden.read import read_dump, read_golden_files
    from gguf_tools.evaluation.golden.servers import check_server

    if sum(option is not None for option in (dump, gguf, server, command)) != 1:
        raise click.UsageError("exactly one of --dump, --gguf, --server and --command is needed")
    if server is None and command is None:
        refuse_given(("model",), "needs --server or --command")
    else:
        refuse_given(
            ("arithmetic", "max_nmse"), "needs --dump or --gguf: of a server or a command, tokens are compared"
        )
    if gguf is None:
        refuse_given(("threads",), "needs --gguf")
    if dump is not None:
        refuse_given(("timeout",), "needs --gguf, --server or --command")
    check_outputs({"--json": json_path}, force=force)
    files = read_golden_files(golden)
    if dump is not None:
        found = check_arrays(files, read_dump(dump), str(dump), arithmetic, max_nmse)
    elif gguf is not None:
        found = check_gguf(files, gguf, arithmetic, max_nmse, threads)
    elif server is not None:
        found = check_server(files, server, model)
    else:
        found = check_command(files, command or "", model)
    write_report(found, json_path, force=force, shown=not quiet)
    if found.first:
        first = found.first
        raise ThresholdError(
            one_line(
                f"{found.engine}: prompt {first.prompt}, position {first.position}, {first.point}: found {first.found}, expected "
                f"{first.expected}"
            )
        )
