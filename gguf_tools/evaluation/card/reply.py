"""Splits a generated text into the model's thought and its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkTags:
    """The tags that enclose a model's thoughts."""

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
"""The tags used by the chat templates that llama.cpp ships (its models/templates)."""


@dataclass(frozen=True)
class Reply:
    """The two parts of a generated text, both stripped.

    `thought`: None if there is no thought block, "" if it is empty. `closed`: False if the last block has no closing tag;
    `answer` is then "".
    """

    thought: str | None
    answer: str
    closed: bool


def find_tags(template: str) -> ThinkTags | None:
    """The first of KNOWN_TAGS of which the chat template contains at least one tag, or None."""
    return next((tags for tags in KNOWN_TAGS if tags.open in template or tags.close in template), None)


def split_reply(text: str, tags: ThinkTags | None, opened: bool = False) -> Reply:
    """Thought and answer of a generated text; `opened`: the prompt ended with the opening tag.

    The answer is the text after the last closing tag or, if that is empty, the text outside the blocks. Text before a
    closing tag without an opening tag belongs to the thought. Without `tags` the whole text is the answer.
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
