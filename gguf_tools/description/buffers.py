"""Tensors that a model computes and saves with its weights: causal masks, rope tables and frequencies, numbers of positions."""

from __future__ import annotations

import numpy as np

from gguf_tools.sources.restore.buffers import HIDDEN, is_causal
from gguf_tools.tensors.base import Tensor

NEAR = 5e-3
"""Tolerance of entries of a rope table, which may be stored in 16 bits."""
MOST = 1 << 16
"""Entries of the first rows of a rope table, or of a vector, that are looked at."""


def is_computed(tensor: Tensor) -> bool:
    """Whether the values of a tensor are those of a mask, a rope table, rope frequencies or positions, whatever its name."""
    shape = tuple(size for size in tensor.shape if size != 1)
    if not shape:
        return tensor.size == 1 and float(tensor.numbers(0, 1)[0]) <= HIDDEN
    if len(shape) == 1:
        return shape[0] <= MOST and _counts_or_falls(tensor.numbers(0, tensor.size))
    square = len(shape) == 2 and shape[0] == shape[1] and len(tensor.shape) >= 2 and tensor.shape[-1] == shape[-1]
    return (square and is_causal(tensor)) or _is_rope_table(tensor, shape)


def _counts_or_falls(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    """Whether a vector holds 0, 1, 2 …, or the frequencies base^(-i/n): 1 and then falling by one factor."""
    if len(values) < 3:
        return False
    if np.array_equal(values, np.arange(len(values))):
        return True
    if values[0] != 1 or not (values > 0).all():
        return False
    ratios = values[1:] / values[:-1]
    return bool(ratios[0] < 1 and np.allclose(ratios, ratios[0], rtol=NEAR))


def _is_rope_table(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the first axis counts positions, and each entry is a cosine or a sine of a multiple of the position."""
    width = tensor.size // shape[0]
    if shape[0] < 3 or width < 2 or 3 * width > MOST:
        return False
    first = tensor.numbers(0, width)
    cosines, sines = first == 1, first == 0
    if not (cosines | sines).all():
        return False
    second, third = tensor.numbers(width, 3 * width).reshape(2, width)
    if max(np.abs(second).max(), np.abs(third).max()) > 1:
        return False
    angles = np.where(cosines, np.arccos(second), np.arcsin(second))
    wanted = np.where(cosines, np.cos(2 * angles), np.sin(2 * angles))
    return bool(angles.any() and np.allclose(third, wanted, atol=NEAR))
