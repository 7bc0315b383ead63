"""The options of the card suite (its questions and weights) and of the model card, for the commands that share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import F
from gguf_tools.commands.completion import completer, score_parts
from gguf_tools.commands.values import Text
from gguf_tools.errors import InputError
from gguf_tools.machine import MOST_COUNT

if TYPE_CHECKING:
    from gguf_tools.evaluation.card.suite import CardOptions

_OPTIONS = (
    click.option(
        "--questions",
        metavar="SET",
        shell_complete=completer(lambda: ("general", "bundled"), files=True),
        default="general",
        show_default=True,
        help="Card suite: the question set, general, bundled, or a JSON Lines file.",
    ),
    click.option(
        "--repeat-set",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        show_default=True,
        help="Card suite: ask N×17 different questions.",
    ),
    click.option(
        "--held-out",
        metavar="SET",
        shell_complete=completer(lambda: ("rest", "general", "bundled"), files=True),
        help="Card suite: held-out questions, scored separately: rest (of --questions), a set, or a file.",
    ),
    click.option(
        "--weight",
        "weights",
        multiple=True,
        metavar="PART=N",
        shell_complete=completer(score_parts),
        help="Card suite: weight of a component of the score, such as facts=50; repeatable.",
    ),
    click.option("--thinking", is_flag=True, help="Card suite: ask with the model's thinking mode on."),
    click.option(
        "--answer-tokens",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        help="Card suite: most tokens per answer.",
    ),
    click.option(
        "--think-tokens",
        type=click.IntRange(min=1),
        default=1024,
        show_default=True,
        help="Card suite: most tokens per answer including its thinking.",
    ),
)

CARD_OPTION_NAMES = ("questions", "repeat_set", "held_out", "weights", "thinking", "answer_tokens", "think_tokens")
"""The parameters that `card_options` adds to a command."""


_PAGE_OPTIONS = (
    click.option("--quantized-by", type=Text(), metavar="NAME", help="Author of the files."),
    click.option(
        "--suite",
        type=click.Choice(["none", "fidelity", "card", "all"]),
        default="all",
        show_default=True,
        help="Which measurements to make; the others are left out of the card.",
    ),
    click.option(
        "--context",
        type=click.IntRange(1, MOST_COUNT),
        help="Context length, in tokens, for which memory is stated; by default 4096, or the model's if that is shorter.",
    ),
)


def page_options(command: F) -> F:
    """A decorator that adds what a model card says and measures: `quantized_by`, `suite` and `context`."""
    for option in reversed(_PAGE_OPTIONS):
        command = option(command)
    return command


def card_options(command: F) -> F:
    """A decorator that adds the options of the card suite; the command receives the parameters `CARD_OPTION_NAMES`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parsed_card_options(
    questions: str,
    repeat_set: int,
    held_out: str | None,
    weights: tuple[str, ...],
    thinking: bool,
    answer_tokens: int,
    think_tokens: int,
    text: Path | None = None,
) -> CardOptions:
    """The options as CardOptions, with a text in place of the set's.

    Raises InputError for a broken file, or an unknown component of the score.
    """
    from gguf_tools.api import options

    return options.card_options(
        questions=questions,
        repeat_set=repeat_set,
        held_out=held_out,
        weights=parsed_weights(weights),
        thinking=thinking,
        answer_tokens=answer_tokens,
        think_tokens=think_tokens,
        text=text,
    )


def parsed_weights(weights: tuple[str, ...]) -> dict[str, float] | None:
    """The weights by component, from texts PART=N; None if there are none. Raises InputError if N is not a number."""
    return dict(map(_weight, weights)) or None


def _weight(text: str) -> tuple[str, float]:
    name, found, number = text.partition("=")
    try:
        return name.strip().replace("-", "_"), float(number)
    except ValueError as error:
        given = "no weight" if not found else f"the weight {number!r}"
        raise InputError(f"--weight {text}: has {given}; expected PART=NUMBER such as facts=50") from error
