"""The tests of consistency: what they accept without fail, and what they notice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from gguf_tools.verification.consistency import COINCIDENCE, MOST_ERROR, chance, examine, objection
from quant.encode import decode_rows, encode_rows
from quant.grids import grid_of
from quant.types import Q4_K, Q8_0, TYPES, TensorType

ROWS, COLUMNS, MATRICES = 16, 1024, 40
ENCODED = [dtype for dtype in TYPES if grid_of(dtype) is not None and dtype is not Q8_0]
"""The types that an importance matrix changes."""
Array = NDArray[np.float32]


def random_weights(rng: np.random.Generator) -> Array:
    """One of the distributions that the limits are made for."""
    shape = (ROWS, COLUMNS)
    values = (
        rng.standard_normal(shape),
        rng.laplace(size=shape),
        rng.standard_t(4, shape),
        rng.standard_normal(shape) + rng.uniform(-2, 2),
    )[rng.integers(4)]
    return np.asarray(values * 10 ** rng.uniform(-3, 0), np.float32)


def random_importance(rng: np.random.Generator) -> Array:
    """Log-normal from column to column, and a few columns far larger."""
    values = np.exp(rng.standard_normal(COLUMNS) * rng.uniform(0, 2))
    outliers = rng.integers(0, COLUMNS // 500 + 1)
    values[rng.integers(0, COLUMNS, outliers)] *= 10 ** rng.uniform(0, 5, outliers)
    return np.asarray(values, np.float32)


@pytest.mark.parametrize("dtype", ENCODED, ids=str)
def test_no_false_alarm(dtype: TensorType) -> None:
    """No matrix in `MATRICES` is called different, and there is room up to each limit."""
    rng = np.random.default_rng(dtype.ggml_id)
    for _ in range(MATRICES):
        weights, importance = random_weights(rng), random_importance(rng)
        own, raw = encode_rows(weights, dtype), encode_rows(weights, dtype, importance)
        found = examine(weights, raw, own, own, dtype)
        assert objection(found) == ""
        assert found.error <= MOST_ERROR / 1.5 * found.own_error
        assert found.equal <= COINCIDENCE / 2 * (found.equal + found.blocks)


@pytest.mark.parametrize("dtype", ENCODED, ids=str)
def test_a_weight_that_was_moved(dtype: TensorType) -> None:
    """Noise of 1 % of the deviation is noticed in a single row of 1,024 weights."""
    rng = np.random.default_rng(dtype.ggml_id)
    weights, importance = rng.standard_normal((1, COLUMNS)).astype(np.float32), random_importance(rng)
    moved = weights + np.float32(0.01) * rng.standard_normal(weights.shape).astype(np.float32)
    own, raw = encode_rows(weights, dtype), encode_rows(moved, dtype, importance)
    assert "levels or scales" in objection(examine(weights, raw, own, own, dtype))


@pytest.mark.parametrize("dtype", ENCODED, ids=str)
def test_scales_of_zero(dtype: TensorType) -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    own, raw = encode_rows(weights, dtype), encode_rows(weights, dtype, random_importance(rng))
    raw.reshape(-1, dtype.block_bytes)[5] = 0
    found = examine(weights, raw, own, own, dtype)
    assert (found.odd, found.first_odd) == (1, 5)


@pytest.mark.parametrize("dtype", ENCODED, ids=str)
def test_a_scale_that_is_infinite(dtype: TensorType) -> None:
    weights = np.random.default_rng(2).standard_normal((2, COLUMNS)).astype(np.float32)
    own = encode_rows(weights, dtype)
    raw = own.copy()
    at = dtype.scales[0]
    raw.reshape(-1, dtype.block_bytes)[3, at : at + 2] = (0x00, 0x7C)
    found = examine(weights, raw, own, own, dtype)
    assert (found.odd, found.first_odd) == (1, 3)
    assert found.relative_error == math.inf


def test_a_coarser_grid_everywhere() -> None:
    """Every weight at its nearest level, but of scales three times too large: the error of the tensor tells."""
    weights = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    own = encode_rows(weights, Q4_K)
    coarse = encode_rows(np.asarray(np.tanh(weights * 9) * 6, np.float32), Q4_K)
    grid = grid_of(Q4_K)
    assert grid
    blocks = coarse.reshape(-1, Q4_K.block_bytes)
    scale, offset = (part[..., None] for part in grid.read(blocks))
    level = np.clip(np.rint((weights.reshape(-1, 8, 32) - offset) / scale), 0, 15).astype(np.uint8)
    pairs = level.reshape(-1, 4, 2, 32)
    blocks[:, 16:] = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(blocks), 128)
    found = examine(weights, coarse, own, own, Q4_K)
    assert found.odd == 0
    assert "times the encoder's" in objection(found)


def test_chance() -> None:
    """A bound of the binomial tail, by exact sums."""
    for blocks, equal in ((4, 4), (40, 25), (400, 300), (40, 10)):
        tail = sum(
            math.comb(blocks, n) * COINCIDENCE**n * (1 - COINCIDENCE) ** (blocks - n) for n in range(equal, blocks + 1)
        )
        assert tail <= chance(equal, blocks) <= max(1.0, tail) * (blocks + 1) * 4
    assert chance(0, 0) == 1.0


@pytest.mark.parametrize("dtype", [*ENCODED, Q8_0], ids=str)
def test_grids_decode_as_ggml(dtype: TensorType) -> None:
    """scale · level + offset of random blocks is what the library decodes."""
    rng = np.random.default_rng(4)
    raw = rng.integers(0, 256, (512, dtype.block_bytes), dtype=np.uint8)
    for at in dtype.scales:
        raw[:, at + 1] &= 0xBB  # no infinities
    grid = grid_of(dtype)
    assert grid
    decoded = decode_rows(raw, dtype, dtype.block).reshape(len(raw), -1, grid.group)
    scale, offset = (part[..., None] for part in grid.read(raw))
    level = grid.levels[grid.index(decoded, scale, offset)]
    assert np.allclose(scale * level + offset, decoded, rtol=1e-6, atol=1e-6 * float(np.abs(offset).max()))
    low, high = (bound[grid.index(decoded, scale, offset)] for bound in grid.bounds)
    assert ((low < level) & (level < high)).all()


def test_every_block_type_that_is_written_has_a_grid() -> None:
    assert {dtype for dtype in TYPES if grid_of(dtype)} == {*ENCODED, Q8_0}
