"""`tinyq ask`: one question to a model, streamed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gguf_tools.commands.common import check_outputs, examples, takes_stdout, write_json
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.talk_options import MOST_BYTES, Printer, decoded, talk_options
from gguf_tools.errors import InputError


@click.command(
    "ask",
    epilog=examples(
        'ask model.gguf "What is the capital of France?"',
        'ask model.gguf "Tell me a story." --thinking --temperature 0.8 --seed 7',
    ),
)
@click.argument("model", type=whole_source())
@click.argument("question")
@talk_options
def ask_command(model: Path, question: str, force: bool, json_path: str | None, quiet: bool, **options: Any) -> None:
    """Ask MODEL, a GGUF, one question with its own chat template; - reads the QUESTION from stdin.

    llama.cpp runs in a child process. The answer is written to stdout as it is generated, a thought and notes to stderr. Without
    thinking unless --thinking is given or the model always thinks; a model without a chat template is asked in plain text.
    """
    from gguf_tools import ask
    from gguf_tools.api.results.conversation import ending

    check_outputs({"--json": json_path}, force=force)
    if question == "-":
        question = _from_stdin()
    if not question.strip():
        raise InputError("the question is empty; give one, or - to read it from stdin")
    printer = Printer(quiet=quiet, silent=takes_stdout(json_path))
    result = ask(model, question, stream=printer, **options)
    printer.end(ending(result.turn, result.context))
    write_json(result.as_dict(), json_path, force=force)


def _from_stdin() -> str:
    """The text on stdin. Raises InputError if it is too long or not UTF-8."""
    data = sys.stdin.buffer.read(MOST_BYTES + 1) if sys.stdin is not None else b""
    return decoded(data).strip()
