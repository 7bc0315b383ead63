"""Best-first search: the most promising choices are changed in one place, where that does not help in two, then in a block."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import count

from gguf_tools.description.choices import Choices
from gguf_tools.description.solver.moves import Move, coupled, joint, kind

Score = Callable[[Choices], float]
Moves = Callable[[Choices], Iterable[Move]]
NEAR = 0.5
"""NMSE of candidates in which most is right; with several wrong choices it is near 1, whatever they are."""


@dataclass
class Search:
    """Candidates with their scores; `tell` is called with the number of candidates and the best score.

    The candidates that were not yet changed wait in queues, one for each form of the first layers. The best of all is changed
    next, or with `turns` the best of each, since layers of the wrong form say nothing by their score. A search ends when the
    best score has not become a tenth better for `patience` candidates (three times as many before one comes near), and goes on
    where it ended.
    """

    score: Score
    moves: Moves
    budget: int
    patience: int
    tell: Callable[[int, float], None] = lambda *_: None
    turns: bool = False
    scores: dict[Choices, float] = field(default_factory=dict)
    queues: dict[Hashable, list[tuple[float, int, Choices]]] = field(default_factory=dict)
    _order: count[int] = field(default_factory=count)
    _lowest: float = field(default=float("inf"), init=False)
    _better: tuple[float, int] = field(default=(float("inf"), 0), init=False)

    @property
    def best(self) -> Choices:
        """The best candidate."""
        return min(self.scores, key=lambda choices: self.scores[choices])

    def add(self, choices: Choices, score: float | None = None) -> float:
        """The score of a candidate, computed once unless it is given; it is queued to be changed."""
        if score is not None or choices not in self.scores:
            self.scores[choices] = found = self.score(choices) if score is None else score
            queue = self.queues.setdefault(kind(choices.forms[0]), [])
            heapq.heappush(queue, (found, next(self._order), choices))
            self._lowest = min(self._lowest, found)
            if found < 0.9 * self._better[0]:
                self._better = found, len(self.scores)
            self.tell(len(self.scores), self._lowest)
        return self.scores[choices]

    def run(self, goal: float) -> Choices:
        """The best candidate found before the goal is reached, or budget or patience are spent."""
        self._better = self._better[0], len(self.scores)
        while not self._ended(goal):
            waiting = [queue for queue in self.queues.values() if queue]
            if not waiting:
                break
            for queue in waiting if self.turns else [min(waiting)]:
                self._change(heapq.heappop(queue), goal)
        return self.best

    def _ended(self, goal: float) -> bool:
        patience = self.patience * (1 if self._lowest < NEAR else 3)
        spent = len(self.scores) >= min(self.budget, self._better[1] + patience)
        return spent or self._lowest <= goal

    def _change(self, item: tuple[float, int, Choices], goal: float) -> None:
        """Evaluate the changes of one candidate."""
        found, _, choices = item
        singles = [move for move in self.moves(choices) if move[1] not in self.scores]
        best = found
        for _, changed in singles:
            if self._ended(goal):
                heapq.heappush(self.queues[kind(choices.forms[0])], item)  # the rest is for when the search goes on
                return
            best = min(best, self.add(changed))
        if best > 0.9 * found:
            self._pairs(singles, goal)
            for together in joint(choices) if self._lowest > 0.9 * found else ():
                if self._ended(goal):
                    return
                self.add(together)

    def _pairs(self, singles: list[Move], goal: float) -> None:
        """Evaluate two coupled changes together."""
        for name, changed in singles:
            for other, both in self.moves(changed):
                repeated = other < name or (other == name and name != "roles")
                if repeated or not coupled(name, other) or both in self.scores:
                    continue
                if self._ended(goal):
                    return
                self.add(both)
