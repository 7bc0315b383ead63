"""A generated text in its two parts: what the model thought, and what it answered."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkTags:
    """The tags a model puts around its thoughts."""

    open: str
    close: str


KNOWN_TAGS: tuple[ThinkTags, ...] = (
    ThinkTags("<think>", "</think>"),
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<reasoning>", "</reasoning>"),
    ThinkTags("<thought>", "</thought>"),
    ThinkTags("[THINK]", "[/THINK]"),
    ThinkTags("<seed:think>", "</seed:think>"),
    ThinkTags("<|begin_of_thought|>", "<|end_of_thought|>"),
    ThinkTags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R
    ThinkTags("<|channel>thought", "<channel|>"),  # Gemma 4
    ThinkTags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)
"""The tags of the families of models that llama.cpp ships chat templates of (its models/templates)."""


@dataclass(frozen=True)
class Reply:
    """A generated text in its two parts, both stripped.

    `thought`: None where no block was opened; "" where it was empty. `closed`: False where the last block never
    closed; `answer` is then "".
    """

    thought: str | None
    answer: str
    closed: bool


def find_tags(template: str) -> ThinkTags | None:
    """The first of KNOWN_TAGS of which one tag stands in a chat template; None without any."""
    return next((tags for tags in KNOWN_TAGS if tags.open in template or tags.close in template), None)


def split_reply(text: str, tags: ThinkTags | None, opened: bool = False) -> Reply:
    """Thought and answer of a generated text; `opened`: the prompt itself ended in an open block.

    The answer is what follows the last closing tag or, where nothing does, what stood outside the blocks. What
    precedes a closing tag that nothing opened is thought. Without tags all is answer.
    """
    if tags is None:
        return Reply(None, text.strip(), True)
    thoughts: list[str] = []
    outside: list[str] = []
    inside = opened
    pieces = re.split(f"({re.escape(tags.open)}|{re.escape(tags.close)})", text)
    for piece in pieces:
        if piece == tags.open:
            inside = True
        elif piece == tags.close:
            if not inside:
                thoughts, outside = thoughts + outside, []
            inside = False
        else:
            (thoughts if inside else outside).append(piece.strip())
    thought = "\n".join(filter(None, thoughts)) if opened or len(pieces) > 1 else None
    if inside:
        return Reply(thought, "", False)
    return Reply(thought, outside[-1] or "\n".join(filter(None, outside)), True)
