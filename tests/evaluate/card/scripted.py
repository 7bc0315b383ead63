"""A runtime that answers by a script: what the card suite makes of it can be tested without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError
from gguf_tools.evaluate.runtime import GreedyResult, ModelInfo

EOS = 0xFFFF
VOCAB = 1 << 16
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
SWITCH = PLAIN + "{% if enable_thinking is false %}<think></think>{% endif %}"
OPENED = PLAIN + "<think>"

Answer = Callable[[str], str]


class Scripted:
    """One token a character; `answer` gives the continuation of a prompt, which ends unless it ends in "…"."""

    def __init__(self, answer: Answer, template: str | None = SWITCH, context: int = 4096) -> None:
        self._answer = answer
        self._template = template
        self.context_limit = context
        self.prompts: list[str] = []
        self.calls: list[tuple[int, ...]] = []

    @property
    def info(self) -> ModelInfo:
        """Facts of no file."""
        return ModelInfo(
            "scripted", "", VOCAB, 1, 1, 1, 4096, "", self._template, None, EOS, None, False, frozenset([EOS]), {}
        )

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """One token a character."""
        return [ord(character) for character in text]

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The characters."""
        return "".join(map(chr, ids))

    def render_chat(self, messages: Sequence[Any], **options: Any) -> str:
        """The template by Jinja itself."""
        import jinja2

        assert self._template is not None
        try:
            return jinja2.Environment().from_string(self._template).render(messages=messages, **options)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refused the messages: {error}") from error

    def iter_logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """Every token equally likely."""
        for sequence in sequences:
            yield np.zeros((len(sequence), 256), np.float32)

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int | Sequence[int],
        stop: frozenset[int] = frozenset(),
        progress: Callable[[int, int], None] | None = None,
    ) -> list[GreedyResult]:
        """What the script says, as far as it may go."""
        counts = [n_tokens] * len(prompts) if isinstance(n_tokens, int) else list(n_tokens)
        self.calls.append(tuple(counts))
        results = []
        for prompt, count in zip(prompts, counts, strict=True):
            assert len(prompt) + count <= self.context_limit
            text = self.detokenize(prompt)
            self.prompts.append(text)
            said = self._answer(text)
            ids = [ord(c) for c in said.removesuffix("…") * (count if said.endswith("…") else 1)]
            ids += [] if said.endswith("…") else [EOS]
            tokens = tuple(ids[:count])
            results.append(GreedyResult(tokens, (1.0,) * len(tokens)))
        return results
