"""Tells a right continuation that goes on in circles from an endless loop.

Small models continue a text without end, and a right continuation then repeats itself: a list such as the days of the week starts
anew, or the sentence is said again. Neither is the fault that the completion part looks for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gguf_tools.evaluation.card.answers import mentions
from gguf_tools.evaluation.card.words import normalise

_ITEMS = re.compile(r"[,;\n•]|\band\b|->|→")
_MOST_WORDS = 2
"""Words of an item of a list."""
_LEAST_ITEMS = 3
_LEAST_WORDS = 4
"""Different words of a sentence that may be said again; fewer are a loop ("west. west. west.")."""
_END = re.compile(r"[.!?](?=[\s\"'”’)]|$)|\n")


def goes_round(block: str, accept: Sequence[str]) -> bool:
    """Whether a repeated block is a list that starts anew: at least three different items, one of them accepted."""
    items = [words for item in _ITEMS.split(block) if (words := normalise(item))]
    short = all(len(words) <= _MOST_WORDS for words in items)
    # The block may begin inside an item, which is whole in the second round.
    return short and len(set(items)) >= _LEAST_ITEMS and mentions(f"{block}{block}", accept)


def finished(text: str, first_round: str, before: str, accept: Sequence[str]) -> bool:
    """Whether a continuation says an accepted phrase in a sentence that is complete before it repeats itself.

    `text` is the continuation; of it, `before` precedes the endless loop, and `first_round` includes the loop's first round.
    """
    end = next((match.end() for match in _END.finditer(text) if mentions(text[: match.end()], accept)), None)
    if end is None:
        return False
    return end <= len(before) or (end <= len(first_round) and len(set(normalise(first_round))) >= _LEAST_WORDS)
