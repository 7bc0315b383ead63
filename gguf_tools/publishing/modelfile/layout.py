"""The text that a chat template puts around messages, as far as Ollama's templates can express it.

A layout depends on the role of the previous message only: that suffices for nearly all templates, and `verify` detects the
others.
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

    `special` has (previous role, text) pairs that replace `before` after that role ("" at the start of a conversation).
    """

    before: str
    after: str
    special: tuple[tuple[str, str], ...] = ()

    def opening(self, previous: str) -> str:
        """The text before the content, after a message of the role `previous`."""
        return dict(self.special).get(previous, self.before)


@dataclass(frozen=True)
class Thoughts:
    """Text around an assistant's thoughts, which precede its content.

    `always`: thoughts appear in every turn; else only in a last turn, which Ollama lets the model continue.
    `absent`: the text in such a last turn without thoughts.
    """

    open: str
    close: str
    always: bool
    absent: str


@dataclass(frozen=True, kw_only=True)
class ChatLayout:
    """The literal text for each role.

    `system` is None if the template ignores system prompts. `generation` follows a last message that is not the assistant's:
    one text each for thinking unspecified, on, and off. `skips_empty_system`: an empty system prompt counts as none.
    `late_system`: system prompts are also rendered after the first message. `default_system` is the template's own prompt
    for conversations that start without one; it is also in `user.special`.
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
        """The prompt that Ollama renders for a conversation with this layout's `go_template`."""
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
    """The longest common prefix of `texts`."""
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(characters[0] for characters in same)
