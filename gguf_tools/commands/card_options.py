"""The options that say what the card suite asks and how it weighs, shared by `tinyq eval` and `tinyq card`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gguf_tools.commands.common import F
from gguf_tools.errors import InputError

if TYPE_CHECKING:
    from gguf_tools.evaluation.card.suite import CardOptions

_OPTIONS = (
    click.option(
        "--questions",
        metavar="SET",
        default="general",
        show_default=True,
        help="Card suite: what to ask, general, bundled, or a JSON lines file.",
    ),
    click.option(
        "--repeat-set",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        show_default=True,
        help="Card suite: ask N times 17 questions, all different.",
    ),
    click.option(
        "--held-out",
        metavar="SET",
        help="Card suite: questions beside the score that confirm a choice: rest (of --questions), a set, or a file.",
    ),
    click.option(
        "--weight",
        "weights",
        multiple=True,
        metavar="PART=N",
        help="Card suite: weigh a part of the score otherwise, such as facts=50; repeatable.",
    ),
    click.option("--thinking", is_flag=True, help="Card suite: ask the questions with thinking on."),
    click.option(
        "--answer-tokens",
        type=click.IntRange(min=1),
        default=128,
        show_default=True,
        help="Card suite: most tokens of an answer.",
    ),
    click.option(
        "--think-tokens",
        type=click.IntRange(min=1),
        default=1024,
        show_default=True,
        help="Card suite: most tokens of a thought and its answer.",
    ),
)

CARD_OPTION_NAMES = ("questions", "repeat_set", "held_out", "weights", "thinking", "answer_tokens", "think_tokens")
"""The arguments that a command with `card_options` gets."""


def card_options(command: F) -> F:
    """Adds the options to a command, which gets CARD_OPTION_NAMES."""
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
) -> CardOptions:
    """The options as the suite takes them. Raises InputError for a broken file or a part that is not there."""
    from gguf_tools.api import options

    return options.card_options(
        questions=questions,
        repeat_set=repeat_set,
        held_out=held_out,
        weights=parsed_weights(weights),
        thinking=thinking,
        answer_tokens=answer_tokens,
        think_tokens=think_tokens,
    )


def parsed_weights(weights: tuple[str, ...]) -> dict[str, float] | None:
    """Weights by part from texts PART=N; None without any. Raises InputError for what is no number."""
    return dict(map(_weight, weights)) or None


def _weight(text: str) -> tuple[str, float]:
    name, found, number = text.partition("=")
    try:
        return name.strip().replace("-", "_"), float(number)
    except ValueError as error:
        missing = "no number" if not found else repr(number)
        raise InputError(f"--weight {text}: has {missing} for a weight; write such as facts=50") from error
