"""`tinyq chat`: a conversation with a model in the terminal, or over a pipe."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import check_outputs, examples, show_part, takes_stdout, write_json
from gguf_tools.commands.sources import whole_source
from gguf_tools.commands.talk_options import MOST_BYTES, Printer, decoded, talk_options
from gguf_tools.commands.waking import woken
from gguf_tools.errors import InputError

if TYPE_CHECKING:
    from types import FrameType

PROMPT = "> "
STEP_SECONDS = 2.0
"""Seconds that an answer has to end after Ctrl-C, before another Ctrl-C ends the command."""


@click.command("chat", epilog=examples('chat model.gguf --system "Answer briefly." --temperature 0.7'))
@click.argument("model", type=whole_source())
@talk_options
def chat(
    model: Path,
    system: str | None,
    thinking: bool,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    kv_type: Any,
    flash_attn: bool,
    gpu_layers: int,
    context: int | None,
    threads: int | None,
    force: bool,
    json_path: str | None,
    quiet: bool,
) -> None:
    """Chat with MODEL, a GGUF, in the terminal: each line is a message. Ctrl-C ends an answer, Ctrl-D the chat.

    If llama.cpp hangs, Ctrl-C again after two seconds ends the chat.

    llama.cpp runs in a child process. When the context is full, the oldest messages are left out, with a note. Messages may also
    come over a pipe, one per line; answers go to stdout, thoughts and notes to stderr. --json writes the conversation at its end.
    """
    from gguf_tools.api.results.conversation import ending, turn_dict
    from gguf_tools.evaluation.conversation import Conversation, runtime_for
    from gguf_tools.runtime.interface import Sampling
    from gguf_tools.runtime.process import RuntimeOptions

    check_outputs({"--json": json_path}, force=force)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    options = RuntimeOptions(
        kv_type=kv_type, flash_attn=flash_attn, gpu_layers=gpu_layers, threads=threads, context_length=context
    )
    with runtime_for(model, options) as runtime:
        talk = Conversation(runtime, system=system, thinking=thinking, sampling=sampling, most=tokens)
        if terminal and not quiet:
            show_part(
                f"{runtime.info.description}, context of {talk.context} tokens. Ctrl-C ends an answer, Ctrl-D the chat.\n",
                err=True,
            )
        printer = Printer(quiet=quiet, silent=takes_stdout(json_path))
        with _interrupts(terminal) as interrupts:
            for message in _messages(terminal, interrupts):
                interrupts.pending = False
                try:
                    for part, text in talk.ask(message, stopped=lambda: interrupts.pending):
                        printer(part, text)
                except InputError as error:
                    if not terminal:
                        raise
                    show_part(f"tinyq: {error}\n", err=True)
                    continue
                turn = talk.turns[-1]
                left_out = (
                    f"the context of {talk.context} tokens is full: the oldest {turn.forgotten} messages were left out"
                    if turn.forgotten
                    else ""
                )
                printer.end("; ".join(filter(None, [ending(turn, talk.context), left_out])))
    report = {"model": str(model), "context": talk.context, "turns": [turn_dict(turn) for turn in talk.turns]}
    write_json(report, json_path, force=force)


class _Interrupts:
    """Whether Ctrl-C was pressed; while a message is typed, it interrupts the reading instead.

    llama.cpp is asked to stop between two steps, which it does not reach if its process hangs; another Ctrl-C then ends the chat.
    """

    def __init__(self) -> None:
        self.pending = False
        self.reading = False
        self._when = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.reading or (self.pending and now - self._when > STEP_SECONDS):
            raise KeyboardInterrupt
        if not self.pending:
            self.pending, self._when = True, now


@contextlib.contextmanager
def _interrupts(terminal: bool) -> Iterator[_Interrupts]:
    """Handle Ctrl-C by an `_Interrupts` within the block, on a terminal; over a pipe it ends the command as usual."""
    found = _Interrupts()
    before = signal.getsignal(signal.SIGINT)
    if not terminal or before is signal.SIG_IGN:
        yield found
        return
    signal.signal(signal.SIGINT, found)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


def _messages(terminal: bool, interrupts: _Interrupts) -> Iterator[str]:
    """The messages that are typed, or the lines of a pipe, until their end; blank ones are left out."""
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives `input` a history and editing keys
    while True:
        try:
            interrupts.reading = terminal
            line = _typed() if terminal else _line()
        except KeyboardInterrupt:
            if not terminal:
                raise
            show_part("\n(Ctrl-D ends the chat)\n", err=True)
            continue
        except EOFError:
            if terminal:
                show_part("\n")
            return
        finally:
            interrupts.reading = False
        if not _is_text(line):
            show_part(
                "tinyq: what was typed is not UTF-8; set the terminal to UTF-8, or type the message again\n", err=True
            )
        elif line.strip():
            yield line.strip()


def _is_text(line: str) -> bool:
    """Whether a line has no bytes that could not be decoded, which Python keeps as lone surrogates."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _typed() -> str:
    """The next line that is typed. Raises EOFError at the end."""
    with woken():
        return input(PROMPT)


def _line() -> str:
    """The next line of stdin. Raises EOFError at its end, InputError for what is not UTF-8."""
    data = sys.stdin.buffer.readline(MOST_BYTES + 1)
    if not data:
        raise EOFError
    return decoded(data)
