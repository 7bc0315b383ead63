"""The error between two tensors, in one pass over both."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal

import numpy as np

from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.error import ratio

PIECE = 1 << 20
"""Weights that are in memory at once of each side."""

Status = Literal["only in A", "only in B", "shape", "values", "type", "equal"]
STATUSES: tuple[Status, ...] = ("only in A", "only in B", "shape", "values", "type", "equal")
"""Worst first. `type`: the values are equal, and stored in different types."""


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far B's values are from A's: NMSE = Σ(b - a)² / Σa², the largest |b - a| and its index, and how many differ.

    NaN equals NaN. A difference that is not finite makes the NMSE infinite.
    """

    nmse: float = 0.0
    largest: float = 0.0
    index: tuple[int, ...] = ()
    differing: int = 0
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """One tensor of either side; shapes and types are None on a side that lacks it. `detail` says more in words."""

    name: str
    status: Status
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    types: tuple[str | None, str | None]
    error: Error | None = None
    detail: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        """A sort key: worst first."""
        return STATUSES.index(self.status), -(self.error.nmse if self.error else 0.0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an NMSE that is not finite becomes None."""
        values: dict[str, Any] = {"name": self.name, "status": self.status, "detail": self.detail}
        for key, pair in (("shape", self.shapes), ("type", self.types)):
            values |= {f"{key}_a": _plain(pair[0]), f"{key}_b": _plain(pair[1])}
        error = self.error
        values |= {
            "nmse": error.nmse if error and isfinite(error.nmse) else None,
            "max_abs_diff": error.largest if error and isfinite(error.largest) else None,
            "worst_index": list(error.index) if error else None,
            "differing": error.differing if error else None,
        }
        return values


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of GGUF files have the same type and the same bytes."""
    if not (isinstance(a, GGUFTensor) and isinstance(b, GGUFTensor)) or a.entry.type is not b.entry.type:
        return False
    count = a.entry.nbytes
    pieces = ((start, min(PIECE, count - start)) for start in range(0, count, PIECE))
    return count == b.entry.nbytes and all(np.array_equal(a.read(*piece), b.read(*piece)) for piece in pieces)


def tensor_error(a: Tensor, b: Tensor, progress: ByteProgress = lambda _: None) -> Error:
    """The error of `b` against `a`, which have the same shape; `progress` receives the number of weights compared."""
    squares = total = largest = 0.0
    differing, at = 0, 0
    for start in range(0, a.size, PIECE):
        stop = min(start + PIECE, a.size)
        one, other = a.flat(start, stop), b.flat(start, stop)
        progress(stop - start)
        with np.errstate(all="ignore"):
            total += float(np.square(one, dtype=np.float64).sum())
            unlike = (one != other) & ~(np.isnan(one) & np.isnan(other))
            if not unlike.any():
                continue
            gaps = np.abs(other.astype(np.float64) - one)
        gaps[~unlike] = 0.0
        gaps[np.isnan(gaps)] = inf
        differing += int(np.count_nonzero(unlike))
        with np.errstate(over="ignore"):
            squares += float(np.square(gaps).sum())
        if gaps.max() > largest:
            at, largest = start + int(gaps.argmax()), float(gaps.max())
    if not differing:
        return Error(size=a.size)
    index = tuple(int(n) for n in np.unravel_index(at, a.shape))
    return Error(nmse=ratio(squares, total), largest=largest, index=index, differing=differing, size=a.size)
