"""Best-first search over choices: the most promising choices are changed in one place, and where that does not help, in two."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

from gguf_tools.description.choices import Choices
from gguf_tools.description.solver.moves import Move, coupled

Score = Callable[[Choices], float]
Moves = Callable[[Choices], Iterable[Move]]


@dataclass
class Search:
    """Candidates with their scores; `tell` is called with the number of candidates and the best score."""

    score: Score
    moves: Moves
    budget: int
    tell: Callable[[int, float], None] = lambda *_: None
    scores: dict[Choices, float] = field(default_factory=dict)

    def evaluate(self, choices: Choices) -> float:
        """The score of a candidate, computed once."""
        if choices not in self.scores:
            self.scores[choices] = self.score(choices)
            self.tell(len(self.scores), min(self.scores.values()))
        return self.scores[choices]

    def run(self, start: Choices, goal: float) -> Choices:
        """The best candidate found before the goal is reached or the budget of evaluations is spent."""
        order = count()
        queue = [(self.evaluate(start), next(order), start)]
        while queue and len(self.scores) < self.budget:
            found, _, choices = heapq.heappop(queue)
            if found <= goal:
                break
            singles = [move for move in self.moves(choices) if move[1] not in self.scores]
            best = found
            for _, changed in singles:
                new = self.evaluate(changed)
                best = min(best, new)
                heapq.heappush(queue, (new, next(order), changed))
                if new <= goal or len(self.scores) >= self.budget:
                    break
            if best > 0.9 * found:
                self._pairs(choices, singles, queue, order, goal)
        return min(self.scores, key=lambda choices: self.scores[choices])

    def _pairs(
        self,
        choices: Choices,
        singles: list[Move],
        queue: list[tuple[float, int, Choices]],
        order: count[int],
        goal: float,
    ) -> None:
        """Evaluate two coupled changes together."""
        for kind, changed in singles:
            for other, both in self.moves(changed):
                repeated = other < kind or (other == kind and kind != "roles")
                if repeated or not coupled(kind, other) or both in self.scores:
                    continue
                if len(self.scores) >= self.budget:
                    return
                new = self.evaluate(both)
                heapq.heappush(queue, (new, next(order), both))
                if new <= goal:
                    return
