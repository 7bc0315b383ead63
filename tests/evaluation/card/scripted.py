"""A runtime that answers by a script: what the card suite makes of it can be tested without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.expected import Free
from gguf_tools.evaluation.card.parts import DEFAULT_WEIGHTS
from gguf_tools.evaluation.card.questions import CardSet, Choice, Completion, Question
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.evaluation.card.suite import CardOptions, run_card
from gguf_tools.runtime.interface import GreedyResult, LogLikelihood, ModelInfo

EOS = 0xFFFF
VOCAB = 1 << 16
TEXT_VOCAB = 256
"""Ids that have a logit; texts for the perplexity have no others."""

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
SWITCH = PLAIN + "{% if enable_thinking is false %}<think></think>{% endif %}"
OPENED = PLAIN + "<think>"
UNDECIDED = PLAIN + "{# <think> #}"
UNTAGGED = "{% if thinking %}Think.{% endif %}" + PLAIN
REFUSING = "{% for m in messages %}{% if m.role == 'system' %}{{ 1 / 0 }}{% endif %}{{ m.content }}{% endfor %}:"

TAGS = {"<think>": 0xE000, "</think>": 0xE001}
"""Texts that are one token."""

_TOKEN = re.compile("|".join(map(re.escape, TAGS)) + "|.", re.DOTALL)
_TEXTS = {token: text for text, token in TAGS.items()}

Answer = Callable[[str], str]
Logits = Callable[[Sequence[int]], npt.NDArray[np.float32]]


def uniform(ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Every token equally likely."""
    return np.zeros((len(ids), TEXT_VOCAB), np.float32)


def tokens_of(text: str) -> list[int]:
    """One token a character, and one a tag."""
    return [TAGS.get(piece) or ord(piece) for piece in _TOKEN.findall(text)]


class Scripted:
    """One token a character or tag; `answer` gives the continuation of a prompt, which ends unless it ends in "…"."""

    def __init__(
        self,
        answer: Answer,
        template: str | None = SWITCH,
        context: int = 4096,
        bos: str | None = None,
        logits: Logits = uniform,
    ) -> None:
        self._answer = answer
        self._template = template
        self._bos = None if bos is None else ord(bos)
        self._logits = logits
        self.context_limit = context
        self.prompts: list[str] = []
        self.calls: list[tuple[int, ...]] = []
        self.read: list[str] = []

    @property
    def info(self) -> ModelInfo:
        """Facts of no file."""
        return ModelInfo(
            arch="scripted",
            description="",
            n_vocab=VOCAB,
            n_layer=1,
            n_params=1,
            bytes=1,
            context_train=4096,
            file_type="",
            chat_template=self._template,
            bos=self._bos,
            eos=EOS,
            eot=None,
            add_bos=self._bos is not None,
            eog=frozenset([EOS]),
            metadata={},
        )

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """`tokens_of`, tags only where `parse_special` says so."""
        begin = [self._bos] if add_special and self._bos is not None else []
        return begin + (tokens_of(text) if parse_special else [ord(character) for character in text])

    def detokenize(self, ids: Sequence[int], special: bool = False) -> str:
        """The characters; a tag is a special token."""
        shown = ids if special else [i for i in ids if i != self._bos and i not in _TEXTS]
        return "".join(_TEXTS.get(i) or chr(i) for i in shown)

    def render_chat(self, messages: Sequence[Any], **options: Any) -> str:
        """The template by Jinja itself."""
        import jinja2

        assert self._template is not None
        try:
            return jinja2.Environment().from_string(self._template).render(messages=messages, **options)
        except (jinja2.TemplateError, ArithmeticError) as error:
            raise InputError(f"the chat template refused the messages: {error}") from error

    def iter_logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """Those of the script."""
        for sequence in sequences:
            assert 0 < len(sequence) <= self.context_limit
            self.read.append(self.detokenize(sequence, special=True))
            yield self._logits(sequence)

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
        for done, (prompt, count) in enumerate(zip(prompts, counts, strict=True), 1):
            assert count > 0 < len(prompt)
            assert len(prompt) + count <= self.context_limit
            text = self.detokenize(prompt, special=True)
            self.prompts.append(text)
            said = self._answer(text)
            ids = tokens_of(said.removesuffix("…") * (count if said.endswith("…") else 1))
            ids += [] if said.endswith("…") else [EOS]
            tokens = tuple(ids[:count])
            results.append(GreedyResult(tokens, (1.0,) * len(tokens)))
            if progress is not None:
                progress(done, len(prompts))
        return results

    def log_likelihoods(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[LogLikelihood]:
        """Minus one nat for each place at which the continuation is not what the script says."""
        found = []
        for context, continuation in requests:
            assert len(context) > 0
            assert 0 < len(continuation) <= self.context_limit - len(context)
            said = tokens_of(self._answer(self.detokenize(context, special=True)))
            wrong = sum(said[n : n + 1] != [token] for n, token in enumerate(continuation))
            found.append(LogLikelihood(-float(wrong), not wrong))
        return found


CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}
QUESTIONS = tuple(Question(f"The capital of {country}?", Free((city,))) for country, city in CAPITALS.items())
COMPLETIONS = (Completion("One, two,", ("three",)), Completion("Red, green,", ("blue",)))
PASSAGES = ("It rains.", "The sun is out again.", "So be it.")


def asked(prompt: str) -> str | None:
    """The city that answers a prompt, None for other prompts."""
    return next((city for country, city in CAPITALS.items() if country in prompt), None)


def perfect(prompt: str) -> str:
    """All right by the template SWITCH, with a thought where one is asked for; nothing repeats."""
    continued = {COMPLETIONS[0].prompt: " three.", COMPLETIONS[1].prompt: " blue."}.get(prompt)
    return continued or ("" if prompt.endswith("</think>") else "<think>Hm.</think>") + f"{asked(prompt)}"


def direct(prompt: str) -> str:
    """The same without any thought."""
    return perfect(prompt).removeprefix("<think>Hm.</think>")


def card_set(
    questions: Sequence[Question] = QUESTIONS,
    completions: Sequence[Completion] = COMPLETIONS,
    passages: Sequence[str] = PASSAGES,
) -> CardSet:
    """A set made for a test."""
    return CardSet("made up", tuple(questions), tuple(completions), tuple(passages))


def scored(
    runtime: Scripted,
    content: CardSet | None = None,
    held_out: Sequence[Question] = (),
    weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    **options: Any,
) -> CardReport:
    """The suite's report on a scripted runtime."""
    return run_card(
        runtime, CardOptions(choice=Choice(content or card_set(), tuple(held_out)), weights=weights, **options)
    )
