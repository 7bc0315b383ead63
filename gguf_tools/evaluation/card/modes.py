"""How a model can be asked: with thinking, without it, or as plain text where it has no chat template.

A model's modes are read from its chat template alone, never from what it answers; so all variants of a model are measured
alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.questions import Question
from gguf_tools.evaluation.card.reply import ThinkTags, find_tags
from gguf_tools.evaluation.text_files import shown
from gguf_tools.runtime.interface import RuntimeLike

Mode = Literal["direct", "thinking", "plain"]
"""Asked by the chat template with thinking off or on, or as plain text."""

_PROBE = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class ChatModes:
    """What a chat template offers.

    `tags` enclose a thought; `switch` tells whether the template knows `enable_thinking` (or Granite's `thinking`), and
    `opened` whether it begins the thought itself.
    """

    template: bool
    tags: ThinkTags | None = None
    switch: bool = False
    opened: bool = False

    @property
    def thinking(self) -> bool:
        """Whether the template asks for a thought, always or on demand; one without known tags cannot be told apart."""
        return self.opened or (self.switch and self.tags is not None)

    @property
    def undecided(self) -> bool:
        """Whether the template knows thoughts and leaves it to the model whether to have any."""
        return self.template and self.tags is not None and not self.thinking

    @property
    def direct(self) -> bool:
        """Whether the template can ask without a thought."""
        return self.template and (self.switch or not self.opened)

    def main(self, thinking: bool) -> Mode:
        """The mode in which the questions are asked: without thinking unless wanted, or nothing else is offered."""
        if not self.template:
            return "plain"
        return "thinking" if thinking or not self.direct else "direct"

    def other(self, main: Mode) -> Mode | None:
        """The mode that `main` leaves, None where there is none."""
        if not self.switch or not self.thinking:
            return None
        return "direct" if main == "thinking" else "thinking"

    def is_short(self, mode: Mode) -> bool:
        """Whether answers in this mode should hold no thought."""
        return mode == "plain" or (mode == "direct" and not self.undecided)

    def render(self, runtime: RuntimeLike, question: Question, mode: Mode) -> str:
        """The prompt's text; InputError where the template refuses it."""
        if mode == "plain":
            system = f"{question.system}\n\n" if question.system else ""
            return f"{system}Question: {question.question}\nAnswer:"
        system_turn = [{"role": "system", "content": question.system}] if question.system else []
        messages = [*system_turn, {"role": "user", "content": question.question}]
        try:
            return runtime.render_chat(messages, **self._options(mode))
        except InputError as error:
            raise InputError(f"{error}; asked {shown(question.question)}") from error

    def _options(self, mode: Mode) -> dict[str, Any]:
        return _switched(mode == "thinking") if self.switch else {}


def find_modes(runtime: RuntimeLike) -> ChatModes:
    """The modes of the runtime's own chat template; InputError where it is broken, refuses a user's greeting or says nothing."""
    template = runtime.info.chat_template
    if template is None:
        return ChatModes(template=False)
    tags = find_tags(template)
    on, off = (runtime.render_chat(_PROBE, **_switched(value)) for value in (True, False))
    if not (on and off):
        raise InputError("the chat template gives no text for a question; mend it, or take it out of the file")
    opened = tags is not None and on.rstrip().endswith(tags.open)
    return ChatModes(True, tags, on != off, opened)


def _switched(on: bool) -> dict[str, Any]:
    return {"enable_thinking": on, "thinking": on}
