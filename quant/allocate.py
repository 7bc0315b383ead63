"""Which type each tensor gets so that all fit a size at the least loss: a multiple-choice knapsack.

Every tensor has options (a type, its bytes, its loss) of which it takes one, and losses add up. A price per byte that all
tensors share (a Lagrange multiplier) gives the best allocation for the size that it happens to reach; going down in price is
taking the steps of the tensors' convex hulls in the order of what they gain a byte. What is left of the size is then spent
by single steps and by exchanges between two tensors. The price also bounds what any allocation could reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quant.errors import InputError
from quant.types import TensorType


@dataclass(frozen=True)
class Option:
    """One way to store a tensor: `bytes` that it takes and the `loss` that it causes."""

    type: TensorType
    bytes: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """The chosen option of each tensor, their bytes and loss together, and a loss that none of this size goes below."""

    options: tuple[Option, ...]
    bytes: int
    loss: float
    bound: float


def allocate(tensors: Sequence[Sequence[Option]], budget: int) -> Allocation:
    """One option for each tensor, of at most `budget` bytes together, with the least loss that was found.

    Raises InputError where even the smallest options do not fit.
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
            # All steps up to here, and the fraction of this one that fits: the best of the relaxed problem.
            bound = loss - gain * (budget - used)
    chosen, used = _improved(useful, chosen, used, budget)
    loss = sum(option.loss for option in chosen)
    return Allocation(tuple(chosen), used, loss, loss if bound is None else max(min(bound, loss), 0.0))


def undominated(options: Sequence[Option]) -> list[Option]:
    """The options that no other one beats in both bytes and loss, the smallest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.bytes, one.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def _steps(tensors: Sequence[Sequence[Option]]) -> list[tuple[float, int, Option]]:
    """The steps along each tensor's convex hull: loss gained a byte, which tensor, and the option it leads to."""
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
    """Exchanges of one tensor's option, or of two tensors' together, while one lowers the loss within the budget."""
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
    """The single move or pair of moves of two tensors that lowers the loss most within `room` more bytes."""
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
                break  # the givers after this one cost more
            if other[2] != move[2] and move[0] + other[0] <= room:
                best, lowest = (move, other), move[1] + other[1]
                break
    return best
