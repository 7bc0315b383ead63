"""What one run of the card suite found, before anything is weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf_tools.evaluation.card.answers import Grade
from gguf_tools.evaluation.card.modes import ChatModes, Mode
from gguf_tools.evaluation.card.repetition import Loop
from gguf_tools.evaluation.card.reply import Reply


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A greedy continuation, as far as it counts.

    `text` shows special tokens; the end-of-generation token is in neither `text` nor `tokens`. `fits`: whether the prompt
    left room for a token. `ended`: whether the model came to an end by itself. `loop`: the endless loop in which it was
    cut off, if it was.
    """

    text: str
    tokens: tuple[int, ...]
    fits: bool
    ended: bool
    loop: Loop | None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question, and what came back."""

    question: str
    mode: Mode
    reply: Reply
    grade: Grade
    generation: Generation

    @property
    def fits(self) -> bool:
        """Whether the question fitted the context."""
        return self.generation.fits

    @property
    def right(self) -> bool:
        """Whether the answer, not the thought, is one of those accepted."""
        return self.grade.right

    @property
    def works(self) -> bool:
        """Whether the mode did what it promises.

        With thinking: a closed block with a thought in it and then an answer. Without: an answer and no thought. Either
        comes to an end by itself.
        """
        thought = self.reply.thought
        if not self.generation.ended or self.grade.reason == "empty" or not self.reply.closed:
            return False
        return bool(thought) == (self.mode == "thinking")


@dataclass(frozen=True)
class Completed:
    """A text and its continuation; `follows` says whether an expected word is in it."""

    prompt: str
    follows: bool
    generation: Generation

    @property
    def coherent(self) -> bool:
        """Whether it goes on as it must, in whole characters, and not in an endless loop."""
        return self.follows and self.generation.loop is None and "\ufffd" not in self.generation.text


@dataclass(frozen=True)
class Passage:
    """A passage's negative log-likelihood in nats, the tokens that were foretold, and their bytes of UTF-8.

    `pieces`: into how many it was cut to fit the context.
    """

    nats: float
    tokens: int
    bytes: int
    pieces: int = 1


@dataclass(frozen=True, kw_only=True)
class CardReport:
    """All that was asked and answered, in order.

    `mode` is that of `answers` and `held_out`; `probes` are the first questions in the other mode, where there is one.
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

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Every text that was generated and counts for the score."""
        answers = (*self.answers, *self.probes)
        return tuple(answer.generation for answer in answers) + tuple(item.generation for item in self.completions)

    def in_mode(self, mode: Mode) -> tuple[Answered, ...]:
        """The answers given in a mode."""
        return self.answers if mode == self.mode else tuple(item for item in self.probes if item.mode == mode)

    def promised(self, mode: Mode) -> tuple[Answered, ...]:
        """The answers in a mode that the template decides on; not where it leaves it to the model whether to think."""
        return () if self.modes.undecided else self.in_mode(mode)
