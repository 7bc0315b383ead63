"""Which candidates go on to a costlier measurement: all that may still be among the best, by paired differences of their items.

Every decision is made from the results of a whole stage, never from those that happen to be there, so that it does not depend on
the number of workers, or on which of them was faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gguf_tools.evaluation.card.statistics import Float, paired_difference

RESAMPLES = 2_000


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate goes on, and a sentence that says why not."""

    goes_on: bool
    reason: str = ""


def survivors(losses: Mapping[int, Float], *, keep: int, most: int, stage: str) -> dict[int, Verdict]:
    """A verdict for each candidate, from its losses on the items of a stage (smaller is better), shape (items,) each.

    A candidate stops if the 95 % interval of its mean loss minus that of the candidate in place `keep` lies above 0 (paired, on
    the same items). Of those left, the best `most` go on.
    Equal losses are ordered by the candidate's place.
    """
    order = sorted(losses, key=lambda one: (_mean(losses[one]), one))
    edge = losses[order[min(keep, len(order)) - 1]] if order else np.empty(0)
    found: dict[int, Verdict] = {}
    taken = 0
    for place, number in enumerate(order):
        worse = "" if place < keep else _worse(edge, losses[number], keep, stage)
        if worse:
            found[number] = Verdict(False, worse)
        elif taken >= most:
            found[number] = Verdict(False, f"{stage}: place {place + 1} of {len(order)}, of which {most} go on")
        else:
            found[number] = Verdict(True)
            taken += 1
    return found


def _mean(losses: npt.NDArray[np.float64]) -> float:
    """The mean, infinite where a loss is not finite."""
    mean = float(np.mean(losses)) if len(losses) else 0.0
    return mean if np.isfinite(mean) else float("inf")


def _worse(edge: Float, losses: Float, keep: int, stage: str) -> str:
    """Why the losses cannot belong to one of the best `keep`, or an empty text."""
    if not np.isfinite(losses).all():
        return f"{stage}: the result is not finite"
    if len(losses) < 2:
        return ""
    estimate, low, high = _difference(tuple(edge.tolist()), tuple(losses.tolist()))
    if low <= 0:
        return ""
    return f"{stage}: {estimate:.3g} worse than place {keep} (95% interval {low:.3g} to {high:.3g})"


@lru_cache(maxsize=4096)
def _difference(edge: tuple[float, ...], losses: tuple[float, ...]) -> tuple[float, float, float]:
    """The paired difference of the means, and its interval; kept, as a worker asks for the same ones at every look."""
    before, after = (np.array(values, dtype=np.float64)[:, None] for values in (edge, losses))
    found = paired_difference([before], [after], lambda means: means[0][:, 0], resamples=RESAMPLES)
    return found.estimate, found.interval.low, found.interval.high
