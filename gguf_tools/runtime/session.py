"""One sequence of a model that is continued again and again, such as a chat: only what is new is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.runtime.interface import Sampling
from gguf_tools.runtime.process import Runtime

OVERLAP = 8
"""Tokens that are decoded to text again with the next one, for characters that several tokens make up."""


class Session:
    """A sequence of at most `context` tokens."""

    def __init__(self, runtime: Runtime, context: int) -> None:
        self.context = context
        self._runtime = runtime
        self._read: list[int] = []

    def continued(
        self,
        tokens: Sequence[int],
        count: int,
        sampling: Sampling,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[int]:
        """The tokens that follow `tokens`, one by one: `count` at most, the last may be an end-of-generation token.

        Nothing follows once the context is full, or as soon as `stopped` says so, which is asked before each step. Raises
        InputError if there are no tokens or there is no room for another one, LlamaError if llama.cpp fails.
        """
        if not 0 < len(tokens) < self.context:
            raise InputError(
                f"the text has {len(tokens)} tokens; expected 1 to {self.context - 1}, as the context has {self.context}"
            )
        if not self._prepare(tokens, stopped):
            return
        previous: int | None = None
        for step in range(min(count, self.context - len(tokens))):
            if stopped():
                return
            token = self._runtime.next_token(previous, sampling if step == 0 else None)
            if previous is not None:
                self._read.append(previous)
            previous = token
            yield token
            if token in self._runtime.info.eog:
                return

    def _prepare(self, tokens: Sequence[int], stopped: Callable[[], bool]) -> bool:
        """Read the tokens that are not read yet, at least the last one; False if `stopped` before the end."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._read, tokens, strict=False)))
        start = min(same, len(tokens) - 1)
        while start < len(tokens):
            if stopped():
                return False
            part = list(tokens[start : start + self._runtime.info.batch])
            if self._runtime.read_tokens(start, part, self.context):
                self._read = [*tokens[:start], *part]
                start += len(part)
            elif start:
                start = 0  # recurrent layers cannot go back to where the texts part
            else:
                raise LlamaError(f"{self._runtime.path}: llama.cpp cannot read the start of a text")
        return True

    def texts(self, tokens: Iterator[int]) -> Iterator[str]:
        """The text of each token, special tokens except end-of-generation included; incomplete characters wait for their rest."""
        window: list[int] = []
        told = ""
        for token in tokens:
            if token in self._runtime.info.eog:
                continue
            window.append(token)
            text = self._runtime.detokenize(window, special=True)
            if text.endswith("\ufffd") and len(window) <= 2 * OVERLAP:
                continue
            yield text[len(told) :]
            told = text
            if len(window) > OVERLAP:
                window = window[-1:]
                told = self._runtime.detokenize(window, special=True)
        if window and (text := self._runtime.detokenize(window, special=True)) != told:
            yield text[len(told) :]
