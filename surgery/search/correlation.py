"""Rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, equal values with their mean rank; 0 where one of the two is constant."""
    one, two = _ranks(first), _ranks(second)
    one, two = one - one.mean(), two - two.mean()
    size = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / size if size else 0.0


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    _, place, counts = np.unique(found, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
