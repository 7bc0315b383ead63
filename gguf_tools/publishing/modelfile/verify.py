"""Checks that a layout renders the same text as the template, on conversations that `probe` did not use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.publishing.modelfile.layout import ChatLayout, Message, common_start

Render = Callable[[Sequence[Message], Mapping[str, Any]], str]
"""(messages, template options such as add_generation_prompt, enable_thinking) → text; InputError if the template refuses."""

THINKING: Mapping[bool | None, Mapping[str, bool]] = {
    None: {},
    True: {"enable_thinking": True},
    False: {"enable_thinking": False},
}
"""The thinking option of Ollama's user → the template's options."""

_S, _U, _A = "You are brief.", "What is 2 + 2?", "It is 4."
_SHAPES: Mapping[str, tuple[str, ...]] = {
    "one question": ("user", _U),
    "two questions": ("user", _U, "assistant", _A, "user", "And 3 + 3?"),
    "three questions": ("user", "a", "assistant", _A, "user", "b", "assistant", "c", "user", "d"),
    "a system prompt and a question": ("system", _S, "user", _U),
    "a system prompt and three questions": ("system", _S, *("user", "a", "assistant", "b") * 2, "user", "c"),
    "several lines": ("system", "1\n2\n\n3", "user", "a\nb", "assistant", "- c\n- d\n\te", "user", "f\n\ng"),
    "other characters": ("user", "{{ x }} {% y %} <b>&amp;</b>", "assistant", "\"'`\\n 🙂 语", "user", "#}"),
    "white space around questions": ("user", " \n a \n", "assistant", _A, "user", "\tb\n"),
    "white space around answers": ("user", _U, "assistant", "\n a \n\n", "user", "b"),
    "white space around a system prompt": ("system", "\n s \n", "user", _U),
}
_RARE_SHAPES: Mapping[str, tuple[str, ...]] = {
    "an empty system prompt": ("system", "", "user", _U, "assistant", _A, "user", "b"),
    "an empty answer": ("user", _U, "assistant", "", "user", "b"),
    "an empty question": ("user", "", "assistant", _A, "user", ""),
    "an answer before the first question": ("assistant", _A, "user", _U, "assistant", "c", "user", "d"),
    "an answer after the system prompt": ("system", _S, "assistant", _A, "user", _U),
    "a system prompt between turns": ("user", _U, "assistant", _A, "system", _S, "user", "b"),
    "two system prompts": ("system", _S, "user", _U, "system", "s", "assistant", _A, "user", "b"),
}
"""Name → alternating roles and contents."""
_EXCERPT = 24


def rendering(render: Render, messages: Sequence[Message], options: Mapping[str, Any], bos: str) -> str:
    """The template's text without the BOS that Ollama adds; InputError if it refuses or renders invalid Unicode."""
    text = render(messages, options).removeprefix(bos)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the chat template renders invalid Unicode")
    return text


def first_difference(render: Render, layout: ChatLayout, bos: str = "") -> str | None:
    """One line about the first conversation on which layout and template differ; None if they agree on all.

    Conversations that the template refuses are skipped if they are unusual, or have a system prompt and the template accepts
    none at all.
    """
    for think, options in THINKING.items():
        for name, messages, may_refuse in _conversations(layout):
            try:
                expected = rendering(render, messages, {"add_generation_prompt": True, **options}, bos)
            except InputError as error:
                if may_refuse:
                    continue
                return f"{error} ({name})"
            if (found := layout.render(messages, think)) != expected:
                return _difference(name, think, expected, found)
    return _difference_in_continuation(render, layout, bos)


def _conversations(layout: ChatLayout) -> Iterator[tuple[str, list[Message], bool]]:
    for name, shape in {**_SHAPES, **_RARE_SHAPES}.items():
        roles, contents = shape[::2], shape[1::2]
        refused_system = layout.system is None and "system" in roles
        messages: list[Message] = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        yield name, messages, refused_system or name in _RARE_SHAPES
    question: Message = {"role": "user", "content": _U}
    turns = [question, _answer(_A, "\n2 + 2 is 4.\n"), question, _answer("b", "c"), question]
    yield "thoughts in earlier answers", turns, False


def _answer(content: str, thoughts: str) -> Message:
    return {"role": "assistant", "content": content, "reasoning_content": thoughts}


def _difference_in_continuation(render: Render, layout: ChatLayout, bos: str) -> str | None:
    """As `first_difference`, for an answer that the model continues: compares the template's text up to that answer's end."""
    answers: dict[str, Message] = {"an answer to continue": {"role": "assistant", "content": _A}}
    if layout.thoughts:
        answers["an answer to continue after thoughts"] = _answer(_A, "2 + 2 is 4.")
    for name, answer in answers.items():
        start: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        messages = [*start, {"role": "user", "content": _U}, answer]
        expected = rendering(render, messages, {"add_generation_prompt": False}, bos)
        found = layout.render(messages)
        if not expected.startswith(found):
            return _difference(name, None, expected, found)
    return None


def _difference(name: str, think: bool | None, expected: str, found: str) -> str:
    start = max(0, len(common_start([expected, found])) - _EXCERPT // 2)
    shown = [repr(text[start : start + _EXCERPT]) for text in (expected, found)]
    mode = {None: "", True: ", thinking on", False: ", thinking off"}[think]
    return (
        f"Ollama's templates cannot express the chat template: for {name}{mode} it renders {shown[0]}, Ollama would render "
        f"{shown[1]}"
    )
