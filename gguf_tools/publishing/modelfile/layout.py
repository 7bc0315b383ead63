"""What a chat template puts around the messages, as far as Ollama's templates can say it.

A layout has no memory beyond the role of the previous message: that is enough for nearly all templates, and `verify`
finds those for which it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """Text before and after the content of a message.

    `special` has, for a previous role ("" at the start of a conversation), the text that stands in place of `before`.
    """

    before: str
    after: str
    special: tuple[tuple[str, str], ...] = ()

    def opening(self, previous: str) -> str:
        """The text before the content where `previous` was the role before."""
        return dict(self.special).get(previous, self.before)


@dataclass(frozen=True)
class Thoughts:
    """Text around an assistant's thoughts, which stand before its content.

    `always`: in every turn; else only in one that ends the conversation, which Ollama lets the model continue.
    `absent`: what such a last turn has where there are no thoughts.
    """

    open: str
    close: str
    always: bool
    absent: str


@dataclass(frozen=True, kw_only=True)
class ChatLayout:
    """The literal text of each role.

    `system` is None where the template shows no system prompts. `generation` follows a last message that is not the
    assistant's: with thinking not asked about, on, and off. `skips_empty_system`: an empty system prompt counts as
    none. `late_system`: system prompts are shown after the first message too. `default_system` is the template's own
    prompt where a conversation starts without one; it is also in `user.special`.
    """

    user: Turn
    assistant: Turn
    system: Turn | None
    generation: tuple[str, str, str]
    thoughts: Thoughts | None = None
    default_system: str | None = None
    skips_empty_system: bool = False
    late_system: bool = True

    def render(self, messages: Sequence[Message], think: bool | None = None) -> str:
        """The prompt that Ollama makes of a conversation with `go_template` of this layout."""
        text, previous = "", ""
        turns = {"system": self.system, "user": self.user, "assistant": self.assistant}
        for index, message in enumerate(messages):
            role, content, last = message["role"], message["content"], index == len(messages) - 1
            turn = turns.get(role)
            if turn is None or (role == "system" and self._skips(content, previous)):
                continue
            text += turn.opening(previous)
            if role == "assistant":
                text += self._thoughts(message.get("reasoning_content"), last) + content
                text += "" if last else turn.after
            else:
                text += content + turn.after
            previous = role
        return text if previous == "assistant" else text + self.generation[_MODES.index(think)]

    def _skips(self, content: str, previous: str) -> bool:
        return (self.skips_empty_system and not content) or (not self.late_system and previous != "")

    def _thoughts(self, thoughts: str | None, last: bool) -> str:
        if self.thoughts is None or not (last or self.thoughts.always):
            return ""
        if thoughts:
            return self.thoughts.open + thoughts + self.thoughts.close
        return self.thoughts.absent if last else ""


_MODES = (None, True, False)


def common_start(texts: Sequence[str]) -> str:
    """The longest text with which all of `texts` begin."""
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(characters[0] for characters in same)
