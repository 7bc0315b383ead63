"""The options that `tinyq ask` and `tinyq chat` share, and how they print a reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from gguf_tools.commands.common import (
    F,
    force_option,
    json_option,
    quiet_option,
    show_part,
    threads_option,
    timeout_option,
)
from gguf_tools.commands.engine_options import engine_options
from gguf_tools.errors import InputError
from gguf_tools.machine import MOST_COUNT

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--system", metavar="TEXT", help="System prompt."),
    click.option("--thinking", is_flag=True, help="Ask with the model's thinking mode on."),
    click.option(
        "--tokens",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Most tokens of a reply, including its thinking.",
    ),
    click.option(
        "--temperature",
        type=float,
        default=0.0,
        show_default=True,
        help="Draw tokens at this temperature; at 0 each is the most likely one.",
    ),
    click.option("--top-k", type=int, default=40, show_default=True, help="Draw from this many tokens; 0 for all."),
    click.option(
        "--top-p",
        type=float,
        default=0.95,
        show_default=True,
        help="Draw from the tokens with this share of probability.",
    ),
    click.option(
        "--min-p",
        type=float,
        default=0.05,
        show_default=True,
        help="Draw from tokens with at least this share of the most likely one's probability.",
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of the draws; the same gives the same reply."
    ),
    engine_options,
    click.option(
        "--context", type=click.IntRange(1, MOST_COUNT), help="Most tokens of the context; by default the model's."
    ),
    timeout_option,
    threads_option,
    force_option,
    json_option,
    quiet_option,
)

MOST_BYTES = 4_000_000
"""Most bytes of a message from stdin."""


def decoded(data: bytes) -> str:
    """A message from stdin. Raises InputError if it is too long or not UTF-8."""
    if len(data) > MOST_BYTES:
        raise InputError(f"stdin: a message has more than {MOST_BYTES:,} bytes; shorten it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: a message is not UTF-8 (byte {error.start + 1} of it)") from error


def talk_options(command: F) -> F:
    """A decorator that adds these options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Printer:
    """Prints a reply as it arrives: the answer on stdout, the thought on stderr, or neither of them if `silent`."""

    def __init__(self, *, quiet: bool, silent: bool = False) -> None:
        self._quiet = quiet
        self._silent = silent
        self._part = ""
        self._blanks = ""

    def __call__(self, part: str, text: str) -> None:
        """Print a piece of a thought or an answer; blanks at the end of either are left out."""
        if self._silent or (part == "thought" and self._quiet):
            return
        if part != self._part:
            if self._part:
                show_part("\n\n", err=self._part == "thought")
            if part == "thought":
                show_part("thinking: ", err=True)
            self._part, self._blanks = part, ""
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        show_part(shown, err=part == "thought")

    def end(self, note: str = "") -> None:
        """End the line, and print a note on stderr."""
        if not self._silent:
            if self._part == "thought":
                show_part("\n", err=True)
            show_part("\n")
        if note and not self._quiet:
            show_part(f"tinyq: {note}\n", err=True)
        self._part = self._blanks = ""
