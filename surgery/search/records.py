"""What a study holds of each candidate, and the results of a stage; both as plain data that a database keeps as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gguf_tools.evaluation.card.statistics import Float
from gguf_tools.formats.text_file import is_finite
from surgery.algebra import Stack
from surgery.recipe import Recipe, parse_text
from surgery.search.space import Candidate

State = Literal["waiting", "running", "complete", "pruned", "failed"]
STAGES = UPDATE_NORM, KL, TEXT, QUESTIONS, FUNCTION, SPEED, HELD_OUT = (
    "update norm",
    "KL",
    "text",
    "questions",
    "function",
    "speed",
    "held out",
)
"""The names of the stages, in the order in which candidates come to them."""


@dataclass(frozen=True)
class Measured:
    """The result of one stage: a loss for each item, smaller is better, and figures to show."""

    losses: Float
    figures: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a database."""
        return {"losses": self.losses.tolist(), "figures": dict(self.figures), "items": dict(self.items)}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Measured:
        """What `as_dict` wrote. KeyError, TypeError or ValueError for anything else."""
        losses, figures, items = np.array(stored["losses"], dtype=np.float64), stored["figures"], stored["items"]
        if losses.ndim != 1 or not isinstance(items, Mapping) or not isinstance(figures, Mapping):
            raise ValueError("a stage's result has another form")
        if not all(value is None or is_finite(value) or isinstance(value, float) for value in figures.values()):
            raise ValueError("a stage's figures are no numbers")
        return cls(losses, figures, items)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A candidate to be added to a study.

    `recipe` is the text of a recipe, empty for the base; `type` is the type of the unchanged base quantized to it (a rival), or
    empty. `generation` counts the rounds of a strategy that builds on results, and `place` all entries of the study in order.
    """

    recipe: str
    key: str
    place: int
    generation: int = 0
    type: str = ""

    def __post_init__(self) -> None:
        """Raise TypeError for a field of another type, which a database may hold."""
        for value, kind in (
            (self.recipe, str),
            (self.key, str),
            (self.place, int),
            (self.generation, int),
            (self.type, str),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{value!r} is no {kind.__name__}")

    def stack(self, count: int) -> Stack:
        """The stack of layers of a base with `count` layers."""
        return self.parsed.apply(count)

    @property
    def parsed(self) -> Recipe:
        """The recipe."""
        return parse_text(self.recipe) if self.recipe else Recipe()

    def candidate(self, count: int) -> Candidate:
        """The recipe with its stack."""
        return Candidate(self.parsed, self.stack(count))

    @property
    def always(self) -> bool:
        """Whether the entry is measured in every stage: the base, and its quantizations."""
        return not self.recipe

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.recipe or (f"base as {self.type}" if self.type else "base")


@dataclass(frozen=True, kw_only=True)
class Record:
    """An entry as the study holds it: `number` is that of its trial, `results` are those of the stages by name, in their order.

    `reason` says why it was pruned, or why it failed.
    """

    entry: Entry
    number: int
    trial_id: int
    state: State
    results: Mapping[str, Measured]
    reason: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more is measured of it."""
        return self.state in ("complete", "pruned", "failed")
