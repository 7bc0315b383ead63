"""Blends and scales of lazy tensors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_tools.errors import InputError
from gguf_tools.tensors.base import InMemory
from surgery.algebra import Method
from surgery.arithmetic import mixed, mixed_logs, rounded_to, times

RNG = np.random.default_rng(5)


def tensor(values: NDArray[np.floating], dtype: str = "F32") -> InMemory:
    return InMemory(np.asarray(values, np.float32), ("t",), dtype)


@given(st.lists(st.floats(-1e38, 1e38), min_size=1))
def test_rounding_to_bfloat16_goes_to_the_nearest(values: list[float]) -> None:
    wide = np.array(values)
    rounded = rounded_to(wide, "BF16")
    bits = rounded.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    for value, got, pattern in zip(values, rounded, bits, strict=True):
        error = abs(Fraction(float(got)) - Fraction(value))
        for other in (int(pattern) - 0x10000, int(pattern) + 0x10000):
            if not 0 <= other < 1 << 32:
                continue
            near = np.array([other], np.uint32).view(np.float32)[0]
            if np.isfinite(near):
                distance = abs(Fraction(float(near)) - Fraction(value))
                assert error <= distance
                assert error < distance or not pattern >> 16 & 1, "a tie goes to the even one"


def test_rounding_happens_once() -> None:
    # Just above half a step of bfloat16, by less than float32 shows: rounding by way of float32 would go down to 1.
    assert rounded_to(np.array([1 + 2**-8 + 2**-40]), "BF16")[0] == 1 + 2**-7
    assert rounded_to(np.array([1 + 2**-11 + 2**-40]), "F16")[0] == 1 + 2**-10


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_piece_of_a_blend_is_a_piece_of_the_whole(method: Method, dtype: str) -> None:
    a, b = (tensor(rounded_to(RNG.normal(size=(6, 10)), dtype), dtype) for _ in range(2))
    made = mixed(((a, 0.25), (b, 0.75)), method)
    whole = made.array()
    assert made.dtype == dtype
    assert made.shape == (6, 10)
    for start, stop in ((0, 60), (7, 8), (9, 31), (55, 60), (30, 30)):
        assert np.array_equal(made.flat(start, stop), whole.reshape(-1)[start:stop])


def test_slerp_keeps_rows_of_one_length_at_that_length() -> None:
    a, b = (RNG.normal(size=(5, 16)) for _ in range(2))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    made = mixed(((tensor(a), 0.7), (tensor(b), 0.3)), "slerp").array()
    assert np.allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
    angle = np.arccos((a * b).sum(1))
    assert np.allclose(np.arccos((a * made).sum(1)), 0.3 * angle, atol=1e-5)


def test_slerp_of_rows_without_an_arc_is_linear() -> None:
    a = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    b = np.array([[2.0, 4.0], [3.0, 1.0], [-1.0, 0.0]])
    made = mixed(((tensor(a), 0.5), (tensor(b), 0.5)), "slerp").array()
    assert np.allclose(made, (a + b) / 2)


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1, 1, 12)])
def test_slerp_of_one_row_is_linear(shape: tuple[int, ...]) -> None:
    a, b = (RNG.normal(size=shape) for _ in range(2))
    made = mixed(((tensor(a), 0.5), (tensor(b), 0.5)), "slerp").array()
    assert np.allclose(made, (a + b) / 2)


def test_slerp_does_not_mind_how_rows_are_stacked_permuted_or_scaled() -> None:
    a, b = (RNG.normal(size=(8, 6)) for _ in range(2))
    order = RNG.permutation(8)
    plain = mixed(((tensor(a), 0.4), (tensor(b), 0.6)), "slerp").array()
    moved = mixed(((tensor(2 * a[order]), 0.4), (tensor(2 * b[order]), 0.6)), "slerp").array()
    stacked = mixed(((tensor(a.reshape(2, 4, 6)), 0.4), (tensor(b.reshape(2, 4, 6)), 0.6)), "slerp").array()
    assert np.array_equal(moved, 2 * plain[order])
    assert np.array_equal(stacked.reshape(8, 6), plain)


def test_decays_are_blended_by_their_logarithm() -> None:
    a, b = RNG.normal(size=4), RNG.normal(size=4)
    parts = ((tensor(-np.exp(a)), 0.25), (tensor(-np.exp(b)), 0.75))
    assert np.allclose(mixed_logs(parts, "f32").array(), -np.exp(0.25 * a + 0.75 * b), rtol=1e-6)
    with pytest.raises(InputError, match="not negative"):
        mixed_logs(((tensor(a), 0.5), (tensor(np.abs(b)), 0.5)), "f32").array()


def test_a_scale_that_overflows_is_refused() -> None:
    with pytest.raises(InputError, match="too large for F16"):
        times(tensor(np.array([60000.0]), "F16"), 2.0).array()
