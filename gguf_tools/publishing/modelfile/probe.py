"""Finds a template's layout by rendering conversations of unique words and splitting the text at these words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.publishing.modelfile.layout import ChatLayout, Message, Thoughts, Turn, common_start
from gguf_tools.publishing.modelfile.verify import THINKING, Render, first_difference, rendering

_THOUGHT = "zqthoughtqz"
_RARE_ORDERS = (
    ("assistant", "user"),
    ("system", "assistant", "user"),
    ("user", "assistant", "system", "user"),
    ("user", "system", "assistant", "user"),
)

Between = dict[tuple[str, str], str]
"""Previous role ("" at the start) and role → the text between their contents."""


def derive_layout(render: Render, template: str, bos: str = "") -> ChatLayout | str:
    """The layout of a chat template, checked by `first_difference`, or one line that says why there is none.

    `template` is the Jinja source, `bos` the text of the BOS token that Ollama itself puts before a prompt ("" if it does not):
    the layout omits it if the template writes it too.
    """
    if "strftime_now" in template:
        return "the chat template contains the current date (strftime_now)"
    try:
        layout = _Probe(render, bos).layout()
        return first_difference(render, layout, bos) or layout
    except InputError as error:
        return str(error)


class _RefusedError(InputError):
    """The template refuses this order of roles."""


class _LeftOutError(InputError):
    """The template does not render a system prompt at this position."""


class _Probe:
    def __init__(self, render: Render, bos: str) -> None:
        self._render = render
        self._bos = bos

    def layout(self) -> ChatLayout:
        """The layout by the text between the contents of rendered messages; raises `_RefusedError` for unsupported orders."""
        between, _ = self._cut("user", "assistant", "user")
        try:
            between |= self._cut("system", "user", "assistant", "user")[0]
        except (_RefusedError, _LeftOutError):
            system_shown = False
        else:
            system_shown = True
        late_system = self._add_rare_orders(between) or not system_shown
        ends = [self._cut("user", add_generation_prompt=True, **options)[1] for options in THINKING.values()]
        after = {
            "user": _after(between, "user", self._cut("user")[1], ends),
            "assistant": _after(between, "assistant", self._cut("user", "assistant")[1]),
        }
        usual = between["assistant", "user"].removeprefix(after["assistant"])
        after["system"] = between.get(("system", "user"), "").removesuffix(usual)
        openings = {pair: _without(after, *pair, text) for pair, text in between.items()}
        default, on, off = (end.removeprefix(after["user"]) for end in ends)
        layout = ChatLayout(
            user=_turn(openings, "assistant", "user", after),
            assistant=_turn(openings, "user", "assistant", after),
            system=_turn(openings, "", "system", after) if system_shown else None,
            generation=(default, on, off),
            late_system=late_system,
        )
        return self._with_default_system(self._with_thoughts(layout))

    def _add_rare_orders(self, between: Between) -> bool:
        """Adds the texts for unusual orders of roles that the template accepts; False if it omits late system prompts."""
        late_system = True
        for roles in _RARE_ORDERS:
            try:
                between |= self._cut(*roles)[0] | between
            except _RefusedError:
                continue
            except _LeftOutError:
                late_system = False
        return late_system

    def _with_thoughts(self, layout: ChatLayout) -> ChatLayout:
        """The layout with the text around thoughts in a last answer, and in earlier ones if the template keeps them."""
        question, plain = {"role": "user", "content": _word(0)}, {"role": "assistant", "content": _word(1)}
        thinking = {**plain, "reasoning_content": _THOUGHT}
        start = layout.user.opening("") + _word(0) + layout.user.after + layout.assistant.opening("user")
        texts = [self._text([question, answer]) for answer in (plain, thinking)]
        if not all(text.startswith(start) for text in texts):
            return layout
        absent, shown = (text.removeprefix(start).partition(_word(1))[0] for text in texts)
        opening, found, closing = shown.partition(_THOUGHT)
        if not found or not opening.strip() or not closing.strip():
            return layout  # without tags Ollama cannot separate thoughts from answers
        history = self._text([question, thinking, {"role": "user", "content": _word(2)}])
        return replace(layout, thoughts=Thoughts(opening, closing, _THOUGHT in history, absent))

    def _with_default_system(self, layout: ChatLayout) -> ChatLayout:
        """The layout with the template's default system prompt, and whether an empty system prompt counts as none."""
        system = layout.system
        if system is None:
            return layout
        question = {"role": "user", "content": _word(0)}
        empty = [{"role": "system", "content": ""}, question]
        if layout.render(empty) != self._text(empty, add_generation_prompt=True):
            layout = replace(layout, skips_empty_system=True)
        text, before = layout.user.opening(""), system.opening("")
        after = system.after + layout.user.opening("system")
        if not (text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)):
            return layout
        default = text[len(before) : len(text) - len(after)]
        same = self._text([{"role": "system", "content": default}, question]) == self._text([question])
        return replace(layout, default_system=default) if same else layout

    def _text(self, messages: Sequence[Message], **options: Any) -> str:
        return rendering(self._render, messages, {"add_generation_prompt": False, **options}, self._bos)

    def _cut(self, *roles: str, **options: Any) -> tuple[Between, str]:
        """(the texts between the contents of a conversation with these roles, the text at its end)."""
        words = [_word(index) for index in range(len(roles))]
        messages = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
        try:
            text = self._text(messages, **options)
        except InputError as error:
            raise _RefusedError(f"{error} (a conversation of {', '.join(roles)})") from error
        if any(role == "system" and word not in text for role, word in zip(roles, words, strict=True)):
            raise _LeftOutError("the chat template omits a system prompt")
        between: Between = {}
        rest = text
        for previous, role, word in zip(("", *roles), roles, words, strict=False):
            between[previous, role], found, rest = rest.partition(word)
            if not found or word in rest:
                raise InputError(_not_in_order(text, roles, words))
        return between, rest


def _not_in_order(text: str, roles: Sequence[str], words: Sequence[str]) -> str:
    for number, word in enumerate(words, 1):
        text = text.replace(word, f"⟨{number}⟩")
    return f"the chat template does not render {', '.join(roles)} messages once each and in order: {text!r:.120}"


def _word(index: int) -> str:
    return f"zqcontent{index}qz"


def _after(between: Between, role: str, end: str, others: Sequence[str] = ()) -> str:
    """The text that closes a message of `role`: `end`, if every text that can follow its content begins with it."""
    texts = [text for (previous, _), text in between.items() if previous == role] + list(others)
    return end if all(text.startswith(end) for text in texts) else common_start(texts)


def _without(after: Mapping[str, str], previous: str, role: str, text: str) -> str:
    closing = after.get(previous, "")
    if not text.startswith(closing):
        raise InputError(
            f"the chat template ends {previous} messages before {role} messages with {text!r:.40}, elsewhere with"
            f" {closing!r:.40}"
        )
    return text.removeprefix(closing)


def _turn(openings: Between, usual: str, role: str, after: Mapping[str, str]) -> Turn:
    before = openings[usual, role]
    special = [(previous, text) for (previous, other), text in openings.items() if other == role and text != before]
    return Turn(before, after[role], tuple(special))
