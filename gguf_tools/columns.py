"""Columns of matrices chosen anew, lazily: what rewrites and targets do to the input side of a projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_tools.tensors import FloatArray, Tensor


@dataclass(frozen=True, eq=False)
class Columns(Tensor):
    """Matrices of as many rows side by side, and of the columns that they have together those in `index`, in its order."""

    parts: tuple[Tensor, ...]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len({part.shape[:-1] for part in self.parts}) != 1:
            raise ValueError(f"cannot set shapes {[part.shape for part in self.parts]} side by side")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (*self.parts[0].shape[:-1], len(self.index))

    @property
    def dtype(self) -> str:  # type: ignore[override]
        kinds = {part.dtype for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else "F32"

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.sources))

    def flat(self, start: int, stop: int) -> FloatArray:
        if stop <= start:
            return np.empty(0, np.float32)
        width = len(self.index)
        first, last = start // width, -(-stop // width)
        rows = [part.flat(first * part.columns, last * part.columns).reshape(-1, part.columns) for part in self.parts]
        taken = np.concatenate(rows, axis=1)[:, self.index]
        return np.ascontiguousarray(taken, np.float32).reshape(-1)[start - first * width : stop - first * width]


def take_columns(base: Tensor, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """The columns `index` of a matrix, lazily."""
    return Columns((base,), np.asarray(index, np.int64))
