"""Weights and importances that cannot be encoded are errors that name the tensor."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from quant.errors import InputError
from quant.types import BF16, F16, F32, TensorType, infinite_scales

# The smallest magnitudes that round to infinity: half a step above the largest number of each 16-bit format.
OVERFLOW = {F32: np.inf, F16: 65520.0, BF16: float.fromhex("0x1.ffp127")}

# The largest magnitude of any block type: Q6_K's F16 scale times an 8-bit scale times a 6-bit weight. Up to it a scale that
# overflows becomes infinity; far beyond it ggml's sums of squares overflow and it silently writes zeros.
REACH = 65504.0 * 128 * 32

# With importances up to it and weights up to REACH the distances to a grid's points are finite; ggml asserts that one is least.
_MOST_IMPORTANT = 1e20


def checked_importance(
    importance: NDArray[np.float32] | None, k: int, dtype: TensorType, source: TensorType, name: str
) -> NDArray[np.float32] | None:
    """The importances of k columns, contiguous, for rows of tensor `name` stored as `source` that are encoded as `dtype`.

    Raises InputError if they are missing, or not such as ggml's encoder expects.
    """
    if importance is None:
        if dtype.needs_importance and dtype is not source:
            raise InputError(
                f"tensor {name} needs an importance matrix to be written as {dtype.name}; give one, or choose "
                "another type"
            )
        return None
    if importance.shape != (k,):
        raise InputError(
            f"the importance matrix has {importance.size} values for tensor {name}; expected {k}, one per column"
        )
    if not np.isfinite(importance).all():
        raise InputError(f"the importance matrix has NaN or infinity for tensor {name}; collect it again")
    if dtype.on_grid and not (importance.min(initial=0) >= 0 and importance.max(initial=0) < _MOST_IMPORTANT):
        raise InputError(
            f"the importance matrix has a value that is negative or {_MOST_IMPORTANT:g} and more for tensor {name}, which "
            f"ggml cannot encode as {dtype.name}; collect it again"
        )
    return np.ascontiguousarray(importance, np.float32)


def require_finite(tile: NDArray[np.float32], name: str, before: int) -> float:
    """The largest magnitude in a tile (rows, k). Raises InputError for NaN and infinity.

    `before` is the number of weights before the tile in its tensor, for the position in the message.
    """
    if not tile.size:
        return 0.0
    peak = max(float(tile.max()), -float(tile.min()))  # a maximum over a NaN is NaN
    if np.isfinite(peak):
        return peak
    flat = tile.reshape(-1)
    at = int(np.flatnonzero(~np.isfinite(flat))[0])
    raise InputError(
        f"tensor {name} holds {flat[at]} at row {(before + at) // tile.shape[1]}, column {(before + at) % tile.shape[1]} "
        "(counted from 0); expected finite weights; repair the checkpoint, or keep them in f32, f16 or bf16 "
        "with --allow-nonfinite"
    )


def require_range(
    raw: NDArray[np.uint8], dtype: TensorType, peak: float, name: str, tile: NDArray[np.float32] | None = None
) -> None:
    """Raise InputError if weights are too large for a type: if an encoded scale is infinite or NaN (as in
    `ggml_validate_row_data`), or if `peak` is beyond any scale. With `tile`, the message counts its weights beyond a limit."""
    if peak >= OVERFLOW.get(dtype, REACH) or bool(infinite_scales(raw, dtype).any()):
        refuse_range(dtype, peak, name, tile)


def refuse_range(dtype: TensorType, peak: float, name: str, tile: NDArray[np.float32] | None) -> NoReturn:
    limit = OVERFLOW.get(dtype)
    count = (
        ""
        if limit is None or tile is None
        else f" ({np.count_nonzero(np.abs(tile) >= limit)} of the {tile.size} weights read are)"
    )
    raise InputError(
        f"tensor {name} has a weight of magnitude {peak:g}, too large for {dtype.name}{count}; use bf16 or f32 for it "
        "(--tensor-type NAME=bf16)"
    )
