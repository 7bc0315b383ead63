"""The items of a search: those that candidates are chosen by, and others that confirm the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.questions import SETS, CardSet, Choice, split_passages
from gguf_tools.evaluation.text_files import read_text


@dataclass(frozen=True)
class Items:
    """The questions and texts of a search. The held-out set has no texts to continue, of which there are few."""

    chosen: CardSet
    held_out: CardSet

    @property
    def plain(self) -> list[list[Sequence[str]]]:
        """The texts of all items, for a digest."""
        sets = (self.chosen, self.held_out)
        return [
            [[q.question for q in one.questions], [c.prompt for c in one.completions], list(one.passages)]
            for one in sets
        ]


MOST_HELD_OUT = 51
"""Held-out questions that are asked, at most: three times as many as a set has."""


def split_items(
    choice: Choice, *, questions: bool = True, own_text: bool = False, held_out_text: Path | None = None
) -> Items:
    """The items of a `Choice`, whose held-out questions confirm; none are asked without `questions`.

    The held-out text is that of the file; without one it is the second text of the question set, or every second passage of the
    user's `own_text`. InputError where there are fewer than two passages to share out, or a passage is in both.
    """
    whole = choice.scored
    passages = whole.passages
    held: tuple[str, ...]
    if held_out_text is not None:
        held = split_passages(read_text(held_out_text), str(held_out_text))
    elif own_text:
        if len(passages) < 2:
            raise InputError(
                "--text: has one passage; a search needs two at least, separated by a blank line, as every second one is held "
                "out; or give --held-out-text"
            )
        passages, held = passages[::2], passages[1::2]
    else:
        text = SETS[whole.name if whole.name in SETS else "general"][2]
        second = text.with_name(f"{text.stem}_held_out{text.suffix}")
        held = split_passages(read_text(second), str(second))
    both = next((passage for passage in held if passage in passages), None)
    if both is not None:
        raise InputError(
            f"--held-out-text: the passage {both[:40]!r} is in the text that candidates are chosen by, too"
        )
    confirming = replace(
        whole,
        questions=choice.held_out[:MOST_HELD_OUT] if questions else (),
        completions=(),
        passages=held,
        name=f"{whole.name}, held out",
    )
    asked = whole if questions else replace(whole, questions=(), completions=())
    return Items(replace(asked, passages=passages), confirming)
