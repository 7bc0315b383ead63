"""The result of `ask`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gguf_tools.tables import Block, Lines, Shown

if TYPE_CHECKING:
    from gguf_tools.evaluation.conversation import Turn
    from gguf_tools.runtime.interface import Sampling


def turn_dict(turn: Turn) -> dict[str, Any]:
    """A message and its reply as JSON data."""
    return {
        "question": turn.question,
        "thought": turn.reply.thought,
        "answer": turn.reply.answer,
        "mode": turn.mode,
        "end": turn.end,
        "tokens": turn.tokens,
        "prompt_tokens": turn.prompt_tokens,
        "forgotten_messages": turn.forgotten,
    }


def ending(turn: Turn, context: int) -> str:
    """Why a reply is not complete, in words; "" if it is."""
    if turn.end == "tokens":
        return f"cut off after {turn.tokens} tokens; --tokens allows more"
    if turn.end == "context":
        return f"cut off: the context of {context} tokens is full"
    return "stopped" if turn.end == "stopped" else ""


@dataclass(frozen=True, repr=False)
class AskResult(Shown):
    """The result of `ask`: the reply to one question, how it was sampled, and the most tokens of the context."""

    model: str
    turn: Turn
    sampling: Sampling
    context: int

    @property
    def answer(self) -> str:
        """The answer without the thought."""
        return self.turn.reply.answer

    @property
    def thought(self) -> str | None:
        """The thought, or None if there is none."""
        return self.turn.reply.thought

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq ask --json` writes."""
        return {
            "model": self.model,
            **turn_dict(self.turn),
            "sampling": asdict(self.sampling),
            "context": self.context,
        }

    def blocks(self) -> Sequence[Block]:
        """The answer, and why it is not complete."""
        end = ending(self.turn, self.context)
        return [Lines(self.answer), *([Lines(f"({end})")] if end else [])]
