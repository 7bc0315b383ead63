"""A conversation with a model by its own chat template, streamed: `tinyq ask` and `tinyq chat`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.modes import ChatModes, Mode, find_modes
from gguf_tools.evaluation.card.reply import KNOWN_TAGS, Reply, ThinkTags, split_reply
from gguf_tools.evaluation.prompts import prompt_ids
from gguf_tools.machine import useful_threads
from gguf_tools.runtime.interface import Message, Sampling
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.runtime.session import Session

Part = Literal["thought", "answer"]
Piece = tuple[Part, str]
"""A part of a reply as it arrives: text of the thought, its tags left out, or of the answer."""
End = Literal["ended", "tokens", "context", "stopped"]
"""Why a reply ended: by itself, at the most tokens, at the end of the context, or because the caller stopped it."""

GROWTH = 1024
"""Tokens by which the memory for a conversation grows; most models' whole context would take gigabytes."""


def runtime_for(path: Path, options: RuntimeOptions) -> Runtime:
    """The process of a file, with as many threads as its size deserves. Raises InputError if it is not a GGUF."""
    runtime = Runtime(path, options)
    runtime.options = replace(options, threads=options.threads or useful_threads(path.stat().st_size))
    return runtime


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A message and the reply to it.

    `forgotten`: messages that were left out because the context had no room for them. `prompt_tokens`: tokens of the whole
    conversation before the reply.
    """

    question: str
    reply: Reply
    mode: Mode
    end: End
    tokens: int
    prompt_tokens: int
    forgotten: int = 0


class Conversation:
    """Messages and replies, as many of the latest as the context holds."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        system: str | None = None,
        thinking: bool = False,
        sampling: Sampling | None = None,
        most: int = 512,
    ) -> None:
        """Raises InputError for a broken chat template, or if thinking is requested of a template without it."""
        self._runtime = runtime
        self._modes: ChatModes = find_modes(runtime)
        if thinking and not self._modes.thinking:
            raise InputError(
                f"{runtime.path}: thinking was requested, but the model's chat template has no thinking mode; leave it out"
            )
        self.mode = self._modes.main(thinking)
        self.context = runtime.context_limit
        self._system = system
        self._sampling = sampling or Sampling()
        self._most = most
        self._session = Session(runtime, 0)
        self._messages: list[Message] = []
        self.turns: list[Turn] = []

    def ask(self, question: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """The reply to a message, in pieces; `turns` has it when it is complete.

        Raises InputError if the message alone does not fit into the context, or the template refuses it; it is then no part of
        the conversation.
        """
        messages, prompt, ids, forgotten = self._fitting({"role": "user", "content": question})
        needed = min(len(ids) + self._most, self.context)
        if self._session.context < needed:
            self._session = Session(self._runtime, min(-(-needed // GROWTH) * GROWTH, self.context))
        tokens: list[int] = []

        def kept() -> Iterator[int]:
            for token in self._session.continued(ids, self._most, self._sampling, stopped):
                tokens.append(token)
                yield token

        tags = self._modes.tags
        splitter = _Splitter(tags, opened=tags is not None and prompt.rstrip().endswith(tags.open))
        text, line = "", False
        for piece in self._session.texts(kept()):
            before = len(text)
            text += piece
            if self.mode == "plain" and "\n" in text.lstrip():  # an answer in plain text is one line
                text, line = text[: text.index("\n", len(text) - len(text.lstrip()))], True
            yield from splitter.feed(text[before:])
            if line:
                break
        yield from splitter.close()
        reply = split_reply(text, splitter.tags, opened=splitter.opened)
        self._messages = [*messages, {"role": "assistant", "content": reply.answer}]
        self.turns.append(
            Turn(
                question=question,
                reply=reply,
                mode=self.mode,
                end=self._end(tokens, len(ids), line),
                tokens=len(tokens),
                prompt_tokens=len(ids),
                forgotten=forgotten,
            )
        )

    def _end(self, tokens: list[int], before: int, line: bool) -> End:
        if line or (tokens and tokens[-1] in self._runtime.info.eog):
            return "ended"
        if len(tokens) >= self._most:
            return "tokens"
        return "context" if before + len(tokens) >= self.context else "stopped"

    def _fitting(self, message: Message) -> tuple[list[Message], str, list[int], int]:
        """The latest messages with which the new one leaves room for an answer, their text and ids, and how many are left out."""
        kept = [*self._messages, message]
        room = min(self._most, max(self.context // 4, 1))
        while True:
            text = self._rendered(kept)
            ids = prompt_ids(self._runtime, text)
            # Alone, a message may leave less room.
            if len(ids) + (room if len(kept) > 1 else 1) <= self.context:
                return kept, text, ids, len(self._messages) + 1 - len(kept)
            if len(kept) == 1:
                raise InputError(
                    f"{self._runtime.path}: the message needs {len(ids)} tokens, but the context has {self.context}, and the "
                    "answer needs room too; shorten it or give a longer --context"
                )
            kept = kept[2:]

    def _rendered(self, messages: list[Message]) -> str:
        if self.mode == "plain":
            turns = zip(messages[::2], [*messages[1::2], {"content": ""}], strict=True)
            told = "\n\n".join(f"Question: {one['content']}\nAnswer: {two['content']}".rstrip() for one, two in turns)
            return f"{self._system}\n\n{told}" if self._system else told
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return self._runtime.render_chat([*system, *messages], **self._modes.options(self.mode))


class _Splitter:
    """Splits a text that arrives in pieces at the tags of thoughts; a tag may arrive in several pieces."""

    def __init__(self, tags: ThinkTags | None, opened: bool) -> None:
        self.tags = tags
        self.opened = opened
        self._inside = opened
        self._waiting = ""
        self._begun = False

    def feed(self, piece: str) -> Iterator[Piece]:
        """The text of a piece that surely is no part of a tag."""
        self._waiting += piece
        while True:
            known = [self.tags] if self.tags else KNOWN_TAGS
            wanted = [tags.close if self._inside else tags.open for tags in known]
            found = [(at, tag) for tag in wanted if (at := self._waiting.find(tag)) >= 0]
            if not found:
                break
            at, tag = min(found)
            yield from self._told(self._waiting[:at])
            self._waiting = self._waiting[at + len(tag) :]
            self.tags = self.tags or next(tags for tags in KNOWN_TAGS if tags.open == tag)
            self._inside, self._begun = not self._inside, False
        held = max((n for tag in wanted for n in range(1, len(tag)) if self._waiting.endswith(tag[:n])), default=0)
        end = len(self._waiting) - held
        yield from self._told(self._waiting[:end])
        self._waiting = self._waiting[end:]

    def close(self) -> Iterator[Piece]:
        """What is left at the end of the text."""
        yield from self._told(self._waiting)
        self._waiting = ""

    def _told(self, text: str) -> Iterator[Piece]:
        """The text, without the blanks at the beginning of a part."""
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            yield ("thought" if self._inside else "answer"), text
