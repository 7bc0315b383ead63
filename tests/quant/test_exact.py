"""Exact packing: what is packed decodes to the same numbers, and what a type cannot hold is not packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant.encode import Block, decode_rows, encode_block, encode_rows
from quant.errors import InputError
from quant.exact import EXACT, MULTIPLES, RANGES, pack_exactly
from quant.types import MXFP4, Q4_0, Q4_1, Q5_0, Q8_0, TensorType, infinite_scales

Floats = NDArray[np.float32]
RNG = np.random.default_rng(5)


def halves(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Random F16 numbers of either sign, subnormal ones and large ones among them."""
    found = rng.integers(1, 0x7800, shape).astype(np.uint16).view(np.float16).astype(np.float64)
    return np.asarray(found * rng.choice([-1.0, 1.0], shape))


def blocks(dtype: TensorType, rng: np.random.Generator, count: int = 64) -> Floats:
    """Random blocks that the type holds: every code, any scale."""
    shape = (count, dtype.block)
    if dtype is MXFP4:
        exponents = rng.integers(-126, 125, (count, 1))
        signed = np.concatenate([MULTIPLES, -MULTIPLES]).astype(np.float64)
        return np.asarray(np.ldexp(signed[rng.integers(0, 16, shape)], exponents), np.float32)
    codes = RANGES[dtype]
    scale = halves(rng, (count, 1))
    if not codes.offset:
        return (rng.integers(codes.low, codes.high + 1, shape) * scale).astype(np.float32)
    # The offset is near the range of the weights, as it is in use: far from it, float32 would round them.
    least = np.float16(rng.uniform(-16, 0, (count, 1)) * np.abs(scale)).astype(np.float64)
    return np.asarray(rng.integers(codes.low, codes.high + 1, shape) * scale + least, np.float32)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_what_a_type_can_hold_is_packed(dtype: TensorType) -> None:
    with np.errstate(over="ignore"):
        rows = blocks(dtype, RNG, 4000)
    rows = rows[np.isfinite(rows).all(axis=1) & (np.abs(rows).max(axis=1) < 60000 if dtype is not MXFP4 else True)]
    raw = pack_exactly(rows, dtype)
    assert raw is not None
    assert not infinite_scales(raw, dtype).any()
    np.testing.assert_array_equal(decode_rows(raw, dtype, dtype.block), rows)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_one_weight_that_does_not_fit(dtype: TensorType) -> None:
    """Anywhere in the rows: by one unit in the last place, NaN, and infinity."""
    rows = np.tile(blocks(dtype, np.random.default_rng(1), 1) + np.float32(0), (300, 8))
    assert pack_exactly(rows, dtype) is not None
    for value in (np.nextafter(rows[250, 3], np.float32(np.inf)), np.nan, np.inf, 1e30):
        changed = rows.copy()
        changed[250, 3] = value
        assert pack_exactly(changed, dtype) is None


@given(st.data())
def test_packed_is_decoded_whatever_the_weights(data: st.DataObject) -> None:
    """Small multiples of any number, so that some blocks fit and some do not: a packing is exact, or there is none."""
    dtype = data.draw(st.sampled_from(EXACT))
    scale = data.draw(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-100, max_value=100))
    codes = data.draw(st.lists(st.integers(-20, 20), min_size=dtype.block, max_size=dtype.block))
    rows = np.array([codes], np.float32) * np.float32(scale)
    raw = pack_exactly(rows, dtype)
    if raw is not None:
        np.testing.assert_array_equal(decode_rows(raw, dtype, dtype.block), rows)
    elif dtype in (Q5_0, Q8_0) and np.float16(scale) == np.float32(scale):
        reach = RANGES[dtype]
        assert max(codes) > reach.high or min(codes) < reach.low or not np.isfinite(np.float16(scale))


def test_codes_with_a_common_divisor() -> None:
    """All codes are multiples of 3, 5 or 7, so that their unit is no F16 number while the scale is one."""
    scale = float(np.float16(1 + 1021 / 1024))
    for factor in (3, 5, 7):
        codes = np.resize(np.array([-factor, 0, factor]), 32)
        rows: Floats = (codes * scale).astype(np.float32).reshape(1, -1)
        assert float(np.float16(scale * factor)) != scale * factor
        assert pack_exactly(rows, Q4_0) is not None


def test_seven_to_minus_eight_of_either_sign() -> None:
    """Q4_0 has -8 to 7: with a negative scale 8 to -7; both at once need another type."""
    for low, high, fits in ((-8, 7, True), (-7, 8, True), (-8, 8, False)):
        rows: Floats = np.resize(np.arange(low, high + 1), 64).astype(np.float32).reshape(1, -1)
        rows /= np.float32(64)
        assert (pack_exactly(rows, Q4_0) is not None) == fits
        assert pack_exactly(rows, Q5_0) is not None


def test_an_offset_at_either_end() -> None:
    """MLX's scales may be negative; its bias is then the largest weight, and the least one is no F16 number."""
    scale, bias = np.float16(-0.0123), np.float16(0.0987)
    rows = (np.arange(16).repeat(2) * np.float32(scale) + np.float32(bias)).reshape(1, -1)
    least = rows.min()
    assert np.float32(np.float16(least)) != least
    assert pack_exactly(rows, Q4_1) is not None


def test_ggml_s_encoder_changes_what_is_exact_here() -> None:
    rows = blocks(Q4_0, np.random.default_rng(2), 200)[:, :32]
    rows = rows[np.abs(rows).max(axis=1) < 1000]
    by_ggml = decode_rows(encode_rows(rows, Q4_0), Q4_0, 32)
    assert (by_ggml != rows).any()


def test_an_encoder_is_told_to_pack_exactly() -> None:
    rows = (RNG.integers(-8, 8, (4, 64)) * 0.25).astype(np.float32)
    rows[:, 0] = 1.75
    found = encode_block(Block(name="a", type=Q4_0, rows=rows, exact=True, measure=4))
    np.testing.assert_array_equal(decode_rows(found.raw, Q4_0, 64), rows)
    assert found.loss is not None
    assert (found.loss.weights, found.loss.changed) == (256, 0)
    narrow: Any = rows.astype(np.float16).view(np.uint16)
    from quant.types import F16

    assert np.array_equal(encode_block(Block(name="a", type=Q4_0, rows=narrow, source=F16, exact=True)).raw, found.raw)
    rows[2, 5] += 0.01
    with pytest.raises(InputError, match=r"tensor a has weights that q4_0 does not hold exactly, in rows 0 to 3"):
        encode_block(Block(name="a", type=Q4_0, rows=rows, exact=True))
