"""The normalised mean square error, by which everything here is compared: logits, intermediates, weights."""

from __future__ import annotations

from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray


def nmse(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """Σ(found - reference)² / Σreference² in float64, of two arrays of one shape: llama.cpp's `nmse` of test-backend-ops.cpp.

    The cases without a quotient are those of `ratio`. Arrays without elements are equal.
    """
    with np.errstate(all="ignore"):
        wanted = reference.astype(np.float64)
        return ratio(float(np.square(found - wanted).sum()), float(np.square(wanted).sum()))


def ratio(squares: float, energy: float) -> float:
    """The NMSE of a sum of squared differences and a sum of squares of the reference.

    0 where nothing differs, also from zeros; infinite where something differs from zeros, and where either sum is not finite,
    because a value on one of the sides is not.
    """
    if not (isfinite(squares) and isfinite(energy)):
        return inf
    if squares == 0.0:
        return 0.0
    return squares / energy if energy else inf
