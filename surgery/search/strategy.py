"""Which candidates a study gets, generation by generation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import TYPE_CHECKING

from surgery.algebra import identity
from surgery.ops import Op
from surgery.recipe import Recipe
from surgery.search.bench import Bench
from surgery.search.ledger import Ledger
from surgery.search.objective import Objective, ranked
from surgery.search.records import UPDATE_NORM, Entry, Measured, Record
from surgery.search.sample import drawn
from surgery.search.space import (
    Candidate,
    Refused,
    Space,
    Strategy,
    block_ops,
    candidates,
    extended,
    single_ops,
    stack_key,
    surgery_refuses,
)

if TYPE_CHECKING:
    import optuna

ROUND = 24
"""Candidates of one generation of `compose` and `sample`, at least."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a search goes about: `budget` candidates at most, of which the best `keep` are confirmed.

    `beam`: how many of the best recipes are extended in a round of `compose`. `rivals`: the types to which the unchanged base is
    quantized for comparison. `seed`: of the sampler.
    """

    space: Space
    strategies: tuple[Strategy, ...]
    budget: int
    keep: int = 5
    beam: int = 4
    rivals: tuple[str, ...] = ()
    seed: int = 0


class Population:
    """The candidates of each generation, which depend on the plan and on the results of the generations before."""

    def __init__(self, plan: Plan, bench: Bench, objectives: Sequence[Objective]) -> None:
        self._plan = plan
        self._bench = bench
        self._objectives = objectives
        self._refused: Refused = surgery_refuses(bench.planned_bytes)

    def first(self) -> list[Entry]:
        """The base, its quantizations, and the candidates of `single` and `blocks`; of these the ones that are expected to lose
        least, if there are more than the budget."""
        space = self._plan.space
        found = [Entry(recipe="", key=stack_key(identity(space.count)), place=0)]
        found += [
            Entry(recipe="", key=type_key(name), place=place, type=name)
            for place, name in enumerate(self._plan.rivals, 1)
        ]
        made = list(candidates(space, self._ops(), self._refused))
        if len(made) > self._plan.budget:
            best = sorted(range(len(made)), key=lambda n: (self._bench.expected(made[n].stack), n))[: self._plan.budget]
            made = [made[n] for n in sorted(best)]
        return found + self._entries(made, len(found), 0)

    def _ops(self) -> Iterator[Op]:
        """The ops of the strategies that need no results."""
        every = {"single": single_ops, "blocks": block_ops}
        return chain.from_iterable(every[name](self._plan.space) for name in self._plan.strategies if name in every)

    def grow(self, ledger: Ledger, records: Sequence[Record]) -> bool:
        """Add the candidates after those of `records`, all of which are finished; false when the search is over.

        `compose` and `sample` take turns, if both are asked for.
        """
        if not records:
            ledger.add(self.first(), self._known)
            return True
        later = [name for name in self._plan.strategies if name in ("compose", "sample")]
        left = self._plan.budget - sum(not record.entry.always for record in records)
        if not later or left <= 0:
            return False
        generation = 1 + max(record.entry.generation for record in records)
        size = min(left, max(ROUND, left // 3))
        if later[(generation - 1) % len(later)] == "compose":
            made = self._composed(records, generation, size)
            ledger.add(made, self._known)
            if made or len(later) == 1:
                return bool(made)
        return ledger.sample(records, self._sampler(records, generation), size, self._plan.seed, self._known) > 0

    def _known(self, entry: Entry) -> dict[str, Measured]:
        """What is expected of an entry, which needs no measuring."""
        return {UPDATE_NORM: self._bench.by_update_norm(entry)}

    def _sampler(self, records: Sequence[Record], generation: int) -> Callable[[optuna.Trial], Entry | None]:
        """Makes an entry of what the sampler suggests, or none."""
        place = count(1 + max(record.entry.place for record in records))

        def entry(trial: optuna.Trial) -> Entry | None:
            found = drawn(trial, self._plan.space)
            if found is None or self._refused(found.recipe):
                return None
            return Entry(recipe=str(found.recipe), key=found.key, place=next(place), generation=generation)

        return entry

    def _composed(self, records: Sequence[Record], generation: int, size: int) -> list[Entry]:
        """The best recipes so far with one op more."""
        layers = self._plan.space.count
        beam = [record.entry.candidate(layers) for record in ranked(records, self._objectives)[: self._plan.beam]]
        beam = beam or [Candidate(Recipe(), identity(layers))]
        known = {record.entry.key: None for record in records}
        rank: dict[str, float] = {}

        def expected(candidate: Candidate) -> float:
            return rank.setdefault(candidate.key, self._bench.expected(candidate.stack))

        made = extended(self._plan.space, beam, known, self._refused, expected, size)
        return self._entries(made, 1 + max(record.entry.place for record in records), generation)

    def _entries(self, made: Sequence[Candidate], place: int, generation: int) -> list[Entry]:
        """Entries of candidates, with places from `place` on."""
        return [
            Entry(recipe=str(candidate.recipe), key=candidate.key, place=place + n, generation=generation)
            for n, candidate in enumerate(islice(made, self._plan.budget))
        ]


def type_key(name: str) -> str:
    """The key of the unchanged base quantized to a type."""
    return hashlib.sha256(f"type:{name}".encode()).hexdigest()[:16]
