"""What a search looks for, and the stages that lead to it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gguf_tools.errors import InputError
from surgery.search.agenda import Rung
from surgery.search.bench import Bench
from surgery.search.records import FUNCTION, KL, QUESTIONS, SPEED, TEXT, UPDATE_NORM, Entry, Measured, Record

Direction = Literal["minimize", "maximize"]
Range = tuple[float, float]
"""The smallest and the largest loss that a measurement leaves possible."""


@dataclass(frozen=True)
class Objective:
    """A figure of the last stages: the card score, bits a byte, KL to a teacher, speed, or what the user's function gives."""

    name: str
    stage: str
    figure: str
    direction: Direction
    function: Callable[[Path], float] | None = None

    def value(self, record: Record) -> float:
        """The candidate's figure."""
        return float(record.results[self.stage].figures[self.figure])

    def loss(self, record: Record) -> float:
        """The figure so that smaller is better."""
        return self.value(record) * (1 if self.direction == "minimize" else -1)

    def range(self, record: Record) -> Range:
        """The losses from the best to the worst that the measurement leaves possible; one and the same but for the speed."""
        if self.stage != SPEED:
            loss = self.loss(record)
            return loss, loss
        figures = record.results[self.stage].figures
        return -float(figures["high"]), -float(figures["low"])


def parse_objective(text: str) -> Objective:
    """`card`, `perplexity` (bits a byte), `kl`, `speed`, or MODULE:FUNCTION; InputError for anything else."""
    known = {
        "card": Objective("card", QUESTIONS, "score", "maximize"),
        "perplexity": Objective("perplexity", TEXT, "bits_per_byte", "minimize"),
        "kl": Objective("kl", KL, "kl", "minimize"),
        "speed": Objective("speed", SPEED, "speed", "maximize"),
    }
    if text in known:
        return known[text]
    module, colon, name = text.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise InputError(f"--objective {text}: is not known; expected {', '.join(known)} or MODULE:FUNCTION")
    # As Python does for a script, a module of the user lies in the current folder.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--objective {text}: cannot be imported ({error})") from error
    if not callable(function):
        raise InputError(f"--objective {text}: is no function; expected one that takes the path of a GGUF")
    return Objective(text, FUNCTION, "function", "maximize", function)


def parse_objectives(texts: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives, each once; InputError where the first, by which equals are ranked, is the speed."""
    found = tuple(map(parse_objective, dict.fromkeys(texts)))
    if found and found[0].stage == SPEED:
        raise InputError(
            "--objective speed: is the first, and a model without layers is the fastest; name what it may not lose before it, "
            "such as --objective card --objective speed"
        )
    return found


@dataclass(frozen=True)
class Stage:
    """A stage of the search with its measurement."""

    rung: Rung
    measure: Callable[[Entry], Measured]


def stages_of(objectives: Sequence[Objective], bench: Bench, *, prune: bool = True) -> tuple[Stage, ...]:
    """The stages that lead to the objectives, the cheapest first; without `prune` only those that they need.

    InputError for a KL objective on an architecture that the torch reference does not know.
    """
    wanted = {objective.stage for objective in objectives}
    if bench.engine is None and KL in wanted:
        raise InputError(
            f"{bench.source}: the torch reference does not know {bench.file.arch}; KL cannot be the objective"
        )
    measures: dict[str, Callable[[Entry], Measured]] = {UPDATE_NORM: bench.by_update_norm}
    if bench.engine is not None:
        measures[KL] = bench.by_kl
    measures |= {TEXT: bench.by_text, QUESTIONS: bench.by_questions}
    function = next((objective.function for objective in objectives if objective.function), None)
    if function is not None:
        measures[FUNCTION] = bench.by_function(function)
    measures[SPEED] = bench.by_speed
    never_alone = (QUESTIONS, SPEED)
    order = [name for name in measures if name in wanted or (prune and name not in never_alone) or name == UPDATE_NORM]
    last = max(order.index(name) for name in wanted)
    first = min(order.index(name) for name in wanted)
    shares, slack = {UPDATE_NORM: 0.75, KL: 0.5, TEXT: 0.5}, {KL: 8, TEXT: 4}
    made = []
    for place, name in enumerate(order[: last + 1]):
        # From the first objective on, every candidate is measured on all of them.
        share = shares.get(name, 1.0) if prune and place < first else 1.0
        made.append(Stage(Rung(name, share, slack.get(name, 1)), measures[name]))
    return tuple(made)


def ranked(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The complete candidates, best first: by fronts that nothing left dominates, then by the first objective, then by place."""
    left = [record for record in records if record.state == "complete" and not record.entry.always]
    losses = {record.number: [objective.range(record) for objective in objectives] for record in left}
    found: list[Record] = []
    while left:
        front = [a for a in left if not any(dominates(losses[b.number], losses[a.number]) for b in left)]
        found += sorted(front, key=lambda record: (losses[record.number][0], record.entry.place))
        left = [record for record in left if record not in front]
    return found


def dominates(a: Sequence[Range], b: Sequence[Range]) -> bool:
    """Whether losses `a` are nowhere larger than `b`, and somewhere smaller; ranges that overlap are equal."""
    pairs = list(zip(a, b, strict=True))
    return all(best <= worst for (best, _), (_, worst) in pairs) and any(
        worst < best for (_, worst), (best, _) in pairs
    )
