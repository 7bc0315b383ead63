"""The raw results of one run of the card suite, before scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf_tools.evaluation.card.answers import Grade
from gguf_tools.evaluation.card.expected import Expected
from gguf_tools.evaluation.card.modes import ChatModes, Mode
from gguf_tools.evaluation.card.repetition import Loop
from gguf_tools.evaluation.card.reply import Reply


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A greedy continuation without its end-of-generation token.

    `text` includes special tokens. `fits`: whether the prompt left room for at least one token. `ended`: whether the model
    emitted an end-of-generation token. `loop`: the endless loop in which the text was cut off, if there is one.
    """

    text: str
    tokens: tuple[int, ...]
    fits: bool
    ended: bool
    loop: Loop | None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question with the model's reply and its grade.

    `likelihoods`: what a choice by log-likelihood was graded by, one value for each option: nats of the letter, or nats per byte
    of the option's text. None if the text was graded.
    """

    question: str
    expected: Expected
    mode: Mode
    reply: Reply
    grade: Grade
    generation: Generation
    likelihoods: tuple[float, ...] | None = None

    @property
    def fits(self) -> bool:
        """Whether the question fits into the context."""
        return self.generation.fits

    @property
    def right(self) -> bool:
        """Whether the answer (not the thought) is graded right."""
        return self.grade.right

    @property
    def works(self) -> bool:
        """Whether the reply has the form that its mode requires.

        With thinking: a closed block with a non-empty thought, followed by an answer. Without: an answer and no thought.
        In both cases the model must end the text itself.
        """
        thought = self.reply.thought
        if not self.generation.ended or self.grade.reason == "empty" or not self.reply.closed:
            return False
        return bool(thought) == (self.mode == "thinking")


@dataclass(frozen=True)
class Completed:
    """A text and its continuation.

    `follows`: whether the continuation contains an expected phrase. `finished`: whether a sentence with that phrase is complete
    before the endless loop, if there is one.
    """

    prompt: str
    follows: bool
    generation: Generation
    finished: bool = False

    @property
    def coherent(self) -> bool:
        """Whether the continuation has an expected phrase, is valid UTF-8, and no endless loop keeps it from its end."""
        loops = self.generation.loop is not None and not self.finished
        return self.follows and not loops and "\ufffd" not in self.generation.text


@dataclass(frozen=True)
class Passage:
    """A passage's negative log-likelihood in nats, the number of predicted tokens, and their length in UTF-8 bytes.

    `pieces`: the number of pieces into which it was split to fit the context.
    """

    nats: float
    tokens: int
    bytes: int
    pieces: int = 1


@dataclass(frozen=True, kw_only=True)
class CardReport:
    """All items and their results, in order.

    `mode` is that of `answers` and `held_out`; `probes` are the first questions asked in the other mode, if there is one.
    `digests` are those of the scored set (`CardSet.digests`), and `tokens` the limits of answers, thoughts and continuations.
    """

    set_name: str
    mode: Mode
    modes: ChatModes
    answers: tuple[Answered, ...]
    probes: tuple[Answered, ...]
    completions: tuple[Completed, ...]
    passages: tuple[Passage, ...]
    held_out: tuple[Answered, ...]
    weights: Mapping[str, float]
    context: int
    digests: Mapping[str, str]
    tokens: Mapping[str, int]

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All generated texts that count for the score."""
        answers = (*self.answers, *self.probes)
        return tuple(answer.generation for answer in answers) + tuple(item.generation for item in self.completions)

    def in_mode(self, mode: Mode) -> tuple[Answered, ...]:
        """The answers given in a mode."""
        return self.answers if mode == self.mode else tuple(item for item in self.probes if item.mode == mode)

    def promised(self, mode: Mode) -> tuple[Answered, ...]:
        """The answers in a mode, except those where the template lets the model decide whether to think."""
        return () if self.modes.undecided else self.in_mode(mode)


def outcomes_of(report: CardReport) -> dict[str, list[bool]]:
    """For each part that is a share of right items: whether each item is right."""
    return {
        "facts": [item.right for item in report.answers],
        "completion": [item.coherent for item in report.completions],
        "thinking": [item.works for item in report.promised("thinking")],
        "non_thinking": [item.works for item in report.promised("direct")],
    }
