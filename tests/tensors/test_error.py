"""The normalised mean square error, and the cases without a quotient."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from gguf_tools.tensors.error import nmse, ratio


def test_the_quotient() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((5, 7)).astype(np.float32)
    assert nmse(a, b) == pytest.approx(np.linalg.norm(a - b) ** 2 / np.linalg.norm(a) ** 2, rel=1e-14)
    assert nmse(1024 * a, 1024 * b) == pytest.approx(nmse(a, b), rel=1e-12)


def test_float32_is_compared_in_float64() -> None:
    a = np.full(4, 1e30, np.float32)  # its square is not finite in float32
    assert nmse(a, 2 * a) == pytest.approx(1.0)
    assert nmse(a, a) == 0.0


def test_zeros_and_values_that_are_not_finite() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    assert nmse(zeros, zeros) == nmse(ones, ones) == nmse(zeros[:0], zeros[:0]) == 0.0
    assert nmse(zeros, ones) == inf
    assert nmse(ones, zeros) == 1.0
    for bad in (nan, inf, -inf):
        broken = np.array([1.0, bad, 1.0])
        assert nmse(ones, broken) == nmse(broken, ones) == nmse(broken, broken) == inf
    assert ratio(0.0, nan) == ratio(nan, 0.0) == ratio(nan, 1.0) == inf
