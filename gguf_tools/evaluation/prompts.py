"""Prompts, built in or read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.evaluation.text_files import json_object, read_lines
from gguf_tools.runtime.interface import Message, RuntimeLike

_DATA = Path(__file__).parent / "data"
_KEYS = ("prompt", "messages", "max_tokens")


@dataclass(frozen=True)
class Prompt:
    """Either `text`, continued unchanged, or `messages`, rendered by the model's chat template.

    `max_tokens` limits the continuation in addition to the caller's limit; `origin` says in errors where the prompt is from.
    """

    text: str = ""
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    origin: str = "built in"

    @property
    def is_chat(self) -> bool:
        """Whether it needs a chat template."""
        return bool(self.messages)


def base_prompts() -> list[Prompt]:
    """The built-in openings of stories and of plain expository English (24)."""
    return [Prompt(text=line) for line in _lines("base.txt")]


def chat_prompts() -> list[Prompt]:
    """The built-in short questions, each as a conversation of one user message (24)."""
    return [Prompt(messages=({"role": "user", "content": line},)) for line in _lines("chat.txt")]


def default_prompts(has_template: bool) -> list[Prompt]:
    """24 prompts: openings of texts for a model without a chat template, else half openings and half questions."""
    base, chat = base_prompts(), chat_prompts()
    return base[::2] + chat[::2] if has_template else base


def _lines(name: str) -> list[str]:
    return (_DATA / name).read_text(encoding="utf-8").splitlines()


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts from a file: JSON lines if its name ends in .jsonl or .json, else text with one prompt per line.

    A JSON line is an object with either "prompt" (text) or "messages" (objects with "role" and "content"), and
    optionally "max_tokens". Blank lines are skipped. Raises InputError that names the file and the line.
    """
    is_json = path.suffix.lower() in (".jsonl", ".json")
    prompts = [
        _from_json(line, origin) if is_json else Prompt(text=line, origin=origin) for origin, line in read_lines(path)
    ]
    if not prompts:
        raise InputError(f"{path}: has no prompts; expected one per line")
    return prompts


def _from_json(line: str, origin: str) -> Prompt:
    """The prompt on a JSON line; InputError that names the line (`origin`) for unknown keys or wrong values."""
    row = json_object(line, origin, _KEYS, '{"prompt": "…"}')
    if ("prompt" in row) == ("messages" in row):
        raise InputError(f'{origin}: has both or neither of "prompt" and "messages"; expected one of them')
    limit = row.get("max_tokens")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"{origin}: max_tokens is {limit!r}; expected a whole number of at least 1")
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"]:
            raise InputError(f"{origin}: prompt is {row['prompt']!r}; expected non-empty text")
        return Prompt(text=row["prompt"], max_tokens=limit, origin=origin)
    return Prompt(messages=_messages(row["messages"], origin), max_tokens=limit, origin=origin)


def _messages(value: Any, origin: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{origin}: messages is {value!r}; expected a list of objects")
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(f'{origin}: message {index} is not valid; expected an object with "role" and "content"')
    return tuple(value)


TEXT_CHUNK = 512


def render_prompt(runtime: RuntimeLike, prompt: Prompt, chat_options: Mapping[str, Any]) -> str:
    """A prompt's text, with messages rendered by the model's chat template. Raises InputError if the model has none."""
    if not prompt.is_chat:
        return prompt.text
    if runtime.info.chat_template is None:
        raise InputError(f'{prompt.origin}: has messages, but the model has no chat template; give "prompt" instead')
    try:
        return runtime.render_chat(prompt.messages, **chat_options)
    except InputError as error:
        raise InputError(f"{prompt.origin}: {error}") from error


def begins(runtime: RuntimeLike, text: str) -> bool:
    """Whether the rendered text already starts with BOS (so it must not be added again)."""
    bos = runtime.info.bos
    begin = "" if bos is None else runtime.detokenize([bos], special=True)
    return bool(begin) and text.startswith(begin)


def prompt_ids(runtime: RuntimeLike, text: str) -> list[int]:
    """Ids of a rendered prompt as in llama.cpp's server: special tokens are recognised, and BOS is added if the model uses it."""
    return runtime.tokenize(text, add_special=not begins(runtime, text), parse_special=True)


def text_pieces(runtime: RuntimeLike, text: str, most: int = TEXT_CHUNK) -> list[list[int]]:
    """The text's ids in pieces of at most `most` tokens or the context, each with BOS if the whole text has it."""
    ids = runtime.tokenize(text, add_special=True, parse_special=False)
    head = ids[:1] if runtime.info.add_bos and ids[:1] == [runtime.info.bos] else []
    body = ids[len(head) :]
    size = max(min(runtime.context_limit, most) - len(head), 1)
    return [head + body[start : start + size] for start in range(0, len(body), size)]


def predicted_bytes(runtime: RuntimeLike, text: str, pieces: Iterable[Sequence[int]]) -> int:
    """UTF-8 bytes of the text's predicted tokens: all but the first of each piece that does not begin with BOS."""
    firsts = [ids[0] for ids in pieces if len(ids) and ids[0] != runtime.info.bos]
    return len(text.encode()) - sum(len(runtime.detokenize([first]).encode()) for first in firsts)
