"""What is lost by storing weights in a narrower type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """The changes by storing `weights` weights in a narrower type; two can be added.

    `changed` of them are no longer equal; `overflowed` of those became infinite and are excluded from `max_abs_change` and
    `sum_sq_change`. `sum_sq` is the sum of squares of the original weights.
    """

    weights: int = 0
    changed: int = 0
    overflowed: int = 0
    max_abs_change: float = 0.0
    sum_sq_change: float = 0.0
    sum_sq: float = 0.0

    def __add__(self, other: Narrowing) -> Narrowing:
        return Narrowing(
            weights=self.weights + other.weights,
            changed=self.changed + other.changed,
            overflowed=self.overflowed + other.overflowed,
            max_abs_change=max(self.max_abs_change, other.max_abs_change),
            sum_sq_change=self.sum_sq_change + other.sum_sq_change,
            sum_sq=self.sum_sq + other.sum_sq,
        )

    @property
    def rms_change(self) -> float:
        """RMS of the changes."""
        return float(np.sqrt(self.sum_sq_change / self.weights)) if self.weights else 0.0

    @property
    def relative_error(self) -> float:
        """RMS of the changes divided by the RMS of the weights; 0 if all weights are 0."""
        return float(np.sqrt(self.sum_sq_change / self.sum_sq)) if self.sum_sq else 0.0


def sum_sq(values: NDArray[np.float32]) -> float:
    # Not a dot product: BLAS would start its own threads for it, which compete with the encoder's.
    return float(np.einsum("i,i", values, values, dtype=np.float64))


def compare(before: NDArray[np.float32], after: NDArray[np.float32]) -> Narrowing:
    """The changes from `before` to `after` (same number of elements); infinite changes count as `overflowed` only, and what
    was not finite before as no change."""
    before, after = before.reshape(-1), after.reshape(-1)
    weights = before.size
    with np.errstate(invalid="ignore"):
        change = before - after
    overflowed = changed = 0
    if not np.isfinite(largest := float(np.abs(change).max(initial=0.0))):
        # Weights that were NaN or infinite before count as unchanged; those that became infinite count as overflowed.
        had = np.isfinite(before)
        before, after, change = before[had], after[had], change[had]
        finite = np.isfinite(after)
        overflowed = change.size - int(np.count_nonzero(finite))
        changed = overflowed
        change = change[finite]
        largest = float(np.abs(change).max(initial=0.0))
    changed += int(np.count_nonzero(change))
    return Narrowing(
        weights=weights,
        changed=changed,
        overflowed=overflowed,
        max_abs_change=largest,
        sum_sq_change=sum_sq(change) if changed else 0.0,
        sum_sq=sum_sq(before),
    )
