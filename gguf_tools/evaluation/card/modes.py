"""The modes in which a model can be asked: with thinking, without it, or as plain text if it has no chat template.

The modes follow from the chat template alone and never from the model's answers, so that all variants of a model are measured
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
"""Chat template with thinking off, chat template with thinking on, or plain text."""

KEYS = ("enable_thinking", "thinking")
"""The variables by which chat templates switch thinking on and off."""
_PROBE = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class ChatModes:
    """The capabilities of a chat template.

    `tags` enclose a thought; `switch`: the template reads `key`, `enable_thinking` or Granite's `thinking`; `opened`: it emits
    the opening tag itself.
    """

    template: bool
    tags: ThinkTags | None = None
    switch: bool = False
    opened: bool = False
    key: str = KEYS[0]

    @property
    def thinking(self) -> bool:
        """Whether the template asks for a thought, always or on demand; thoughts are recognised by known tags only."""
        return self.opened or (self.switch and self.tags is not None)

    @property
    def undecided(self) -> bool:
        """Whether the template supports thinking but lets the model decide whether to think."""
        return self.template and self.tags is not None and not self.thinking

    @property
    def direct(self) -> bool:
        """Whether the template can ask for an answer without a thought."""
        return self.template and (self.switch or not self.opened)

    def main(self, thinking: bool) -> Mode:
        """The mode in which the questions are asked: without thinking, unless `thinking` is set or the only mode."""
        if not self.template:
            return "plain"
        return "thinking" if thinking or not self.direct else "direct"

    def other(self, main: Mode) -> Mode | None:
        """The mode other than `main`, or None."""
        if not self.switch or not self.thinking:
            return None
        return "direct" if main == "thinking" else "thinking"

    def is_short(self, mode: Mode) -> bool:
        """Whether answers in this mode should have no thought, and so get the lower token limit."""
        return mode == "plain" or (mode == "direct" and not self.undecided)

    def render(self, runtime: RuntimeLike, question: Question, mode: Mode) -> str:
        """The prompt's text. Raises InputError if the template rejects it."""
        if mode == "plain":
            system = f"{question.system}\n\n" if question.system else ""
            return f"{system}Question: {question.asked}\nAnswer:"
        system_turn = [{"role": "system", "content": question.system}] if question.system else []
        messages = [*system_turn, {"role": "user", "content": question.asked}]
        try:
            return runtime.render_chat(messages, **self.options(mode))
        except InputError as error:
            raise InputError(f"{error}; the question is {shown(question.question)}") from error

    def options(self, mode: Mode) -> dict[str, Any]:
        """The variables of the template that ask for this mode."""
        return _switched(mode == "thinking") if self.switch else {}


def find_modes(runtime: RuntimeLike) -> ChatModes:
    """The modes of the model's chat template. Raises InputError if it is broken, rejects a user message or renders nothing."""
    template = runtime.info.chat_template
    if template is None:
        return ChatModes(template=False)
    tags = find_tags(template)
    on, off = (runtime.render_chat(_PROBE, **_switched(value)) for value in (True, False))
    if not (on and off):
        raise InputError("the chat template gives no text for a question; correct it or remove it from the file")
    opened = tags is not None and on.rstrip().endswith(tags.open)
    alone = (runtime.render_chat(_PROBE, **{KEYS[0]: value}) for value in (True, False))
    return ChatModes(True, tags, on != off, opened, KEYS[0] if on == off or len(set(alone)) == 2 else KEYS[1])


def _switched(on: bool) -> dict[str, Any]:
    return dict.fromkeys(KEYS, on)
