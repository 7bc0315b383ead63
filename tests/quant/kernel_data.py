"""Weights that are hard to encode identically: what the tests of the kernels and their fuzzing share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Shape = tuple[int, int]
Random = np.random.Generator


def _bits(rng: Random, shape: Shape) -> FloatArray:
    """Random finite bit patterns: all magnitudes, subnormal numbers included."""
    bits = rng.integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0xFF7FFFFF
    return bits.view(np.float32)


def _ties(rng: Random, shape: Shape) -> FloatArray:
    """Half steps of a grid whose largest value is in each block of 16: where one unit in the last place decides."""
    reach = rng.choice([2, 4, 8, 15, 16, 31, 32, 63, 127], (shape[0], shape[1] // 16, 1))
    steps = np.round(rng.uniform(-2, 2, (shape[0], shape[1] // 16, 16)) * reach) / 2
    steps[..., 3], steps[..., 7] = -reach[..., 0], reach[..., 0] - 0.5
    unit = rng.uniform(0.001, 3, (shape[0], 1, 1))
    rows: FloatArray = steps.astype(np.float32) * unit.astype(np.float32)
    return rows.reshape(shape)


def _sparse(rng: Random, shape: Shape) -> FloatArray:
    return np.where(rng.random(shape) < 0.03, rng.standard_normal(shape), 0).astype(np.float32)


def _signed_zeros(rng: Random, shape: Shape) -> FloatArray:
    zeros = np.where(rng.random(shape) < 0.5, np.float32(0), np.float32(-0.0))
    return np.where(rng.random(shape) < 0.01, rng.standard_normal(shape), zeros).astype(np.float32)


def _constant_blocks(rng: Random, shape: Shape) -> FloatArray:
    values = rng.standard_normal((shape[0], shape[1] // 16)) * (rng.random((shape[0], shape[1] // 16)) < 0.8)
    rows: FloatArray = np.repeat(values, 16, axis=1).astype(np.float32)
    return rows


def _bf16(rng: Random, shape: Shape) -> FloatArray:
    rows: FloatArray = (rng.standard_normal(shape) * 0.02).astype(np.float32)
    kept: FloatArray = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return kept


def _scaled(scale: float, shift: float = 0.0) -> Callable[[Random, Shape], FloatArray]:
    return lambda rng, shape: (rng.standard_normal(shape) * scale + shift).astype(np.float32)


def _mixed_scales(rng: Random, shape: Shape) -> FloatArray:
    """A magnitude for each block of 16, so that sub-blocks of scale zero lie beside large ones."""
    scale = 10.0 ** rng.uniform(-9, 3, (shape[0], shape[1] // 16))
    return (rng.standard_normal(shape) * np.repeat(scale, 16, axis=1)).astype(np.float32)


DATA: dict[str, Callable[[Random, Shape], FloatArray]] = {
    "gaussian": _scaled(0.02),
    "gaussian-30": _scaled(30.0),
    "bf16": _bf16,
    "heavy": lambda rng, shape: (rng.standard_t(2, shape) * 0.02).astype(np.float32),
    "laplace": lambda rng, shape: rng.laplace(0, 0.1, shape).astype(np.float32),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape).astype(np.float32),
    "positive": lambda rng, shape: rng.exponential(1, shape).astype(np.float32),
    "negative": lambda rng, shape: -rng.exponential(1, shape).astype(np.float32),
    "shifted": _scaled(0.01, 1.0),
    "far": _scaled(1e-6, 1.0),
    "zeros": lambda rng, shape: np.zeros(shape, np.float32),
    "signed-zeros": _signed_zeros,
    "ones": lambda rng, shape: np.full(shape, 0.7, np.float32),
    "constant-blocks": _constant_blocks,
    "sparse": _sparse,
    "ties": _ties,
    "mixed": _mixed_scales,
    "few-values": lambda rng, shape: rng.choice(np.array([-1, -0.5, 0, 0.25, 1], np.float32), shape),
    "1e-8": _scaled(1e-8),
    "1e-15": _scaled(1e-15),
    "1e-20": _scaled(1e-20),
    "subnormal": _scaled(1e-40),
    "1e4": _scaled(1e4),
    "1e10": _scaled(1e10),
    "1e20": _scaled(1e20),
    "1e38": lambda rng, shape: np.clip(rng.standard_normal(shape) * 1e38, -3.4e38, 3.4e38).astype(np.float32),
    "bits": _bits,
}
"""Name → rows of weights of a shape, whose columns are a multiple of 16."""


def importance(rng: Random, columns: int, kind: str) -> FloatArray:
    """Importances of columns: `plain`, with `zeros`, or of all `magnitudes`."""
    values = rng.exponential(1.0, columns)
    if kind == "zeros":
        values *= rng.random(columns) < 0.7
    elif kind == "magnitudes":
        values = 10.0 ** rng.uniform(-12, 12, columns)
    return values.astype(np.float32)


IMPORTANCES = ("plain", "zeros", "magnitudes")
