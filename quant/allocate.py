"""Selects a type for each tensor that minimises the total loss within a size: a multiple-choice knapsack problem.

Every tensor has options (a type, its bytes, its loss), exactly one is selected, and losses add up. A Lagrange multiplier (a
price per byte shared by all tensors) gives the optimal allocation for the size that results; lowering it means taking the
steps along the tensors' convex hulls in descending order of loss saved per byte. The remaining bytes are used by single steps
and by exchanges between two tensors. The multiplier also gives a lower bound on the loss of any allocation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quant.errors import InputError
from quant.types import TensorType


@dataclass(frozen=True)
class Option:
    """One way to store a tensor, with its size in `bytes` and the `loss` that it causes."""

    type: TensorType
    bytes: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """The selected option of each tensor, their total bytes and loss, and a lower bound on the loss within the budget."""

    options: tuple[Option, ...]
    bytes: int
    loss: float
    bound: float


def allocate(tensors: Sequence[Sequence[Option]], budget: int) -> Allocation:
    """Select one option per tensor, of at most `budget` bytes in total, with the lowest loss that the search finds.

    Raises InputError if even the smallest options do not fit.
    """
    useful = [undominated(options) for options in tensors]
    smallest = sum(options[0].bytes for options in useful)
    if smallest > budget:
        raise InputError(f"the smallest types take {smallest:,} bytes, more than {budget:,}; give a larger target")
    chosen = [options[0] for options in useful]
    used, loss = smallest, sum(option.loss for option in chosen)
    bound: float | None = None
    for gain, at, step in sorted(_steps(useful), key=lambda one: -one[0]):
        extra = step.bytes - chosen[at].bytes
        if used + extra <= budget:
            loss -= chosen[at].loss - step.loss
            chosen[at], used = step, used + extra
        elif bound is None:
            # The optimum of the relaxed problem: all steps up to here, and the fraction of this one that fits.
            bound = loss - gain * (budget - used)
    chosen, used = _improved(useful, chosen, used, budget)
    loss = sum(option.loss for option in chosen)
    return Allocation(tuple(chosen), used, loss, loss if bound is None else max(min(bound, loss), 0.0))


def undominated(options: Sequence[Option]) -> list[Option]:
    """The Pareto-optimal options in bytes and loss, the smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.bytes, one.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def _steps(tensors: Sequence[Sequence[Option]]) -> list[tuple[float, int, Option]]:
    """The steps along each tensor's convex hull: (loss saved per byte, index of the tensor, the option after the step)."""
    found = []
    for at, options in enumerate(tensors):
        hull = [options[0]]
        for option in options[1:]:
            while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], option):
                hull.pop()
            hull.append(option)
        found += [(_gain(before, after), at, after) for before, after in pairwise(hull)]
    return found


def _gain(before: Option, after: Option) -> float:
    return (before.loss - after.loss) / (after.bytes - before.bytes)


def _improved(
    tensors: Sequence[Sequence[Option]], chosen: Sequence[Option], used: int, budget: int
) -> tuple[list[Option], int]:
    """Local search: changes the options of one or two tensors as long as that lowers the loss within the budget.

    Returns the options and their total bytes.
    """
    best = list(chosen)
    while True:
        moves = [
            (option.bytes - best[at].bytes, option.loss - best[at].loss, at, option)
            for at, options in enumerate(tensors)
            for option in options
            if option != best[at]
        ]
        change = _best_change(moves, budget - used)
        if change is None:
            return best, used
        for extra, _, at, option in change:
            best[at] = option
            used += extra


Move = tuple[int, float, int, Option]


def _best_change(moves: Sequence[Move], room: int) -> tuple[Move, ...] | None:
    """The move, or pair of moves of two tensors, that lowers the loss most and adds at most `room` bytes; None if none does."""
    best: tuple[Move, ...] | None = None
    lowest = -1e-12 * max((abs(move[1]) for move in moves), default=0.0)
    gains = [move for move in moves if move[1] < 0]
    for move in gains:
        if move[0] <= room and move[1] < lowest:
            best, lowest = (move,), move[1]
    givers = sorted((move for move in moves if move[0] < 0), key=lambda move: move[1])
    for move in gains:
        for other in givers:
            if move[1] + other[1] >= lowest:
                break  # moves after this one lose more
            if other[2] != move[2] and move[0] + other[0] <= room:
                best, lowest = (move, other), move[1] + other[1]
                break
    return best
