"""NaN and infinity in stored blocks, against decoding all of them and against ggml's own check."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant import finite
from quant.encode import can_decode, decode_rows
from quant.finite import first_nonfinite
from quant.types import F32, TYPES, TensorType, tensor_type
from tests.quant.quant_oracle import valid

F64 = tensor_type("f64")
FLOATS = [kind for kind in TYPES if kind is F64 or can_decode(kind)]


def decoded(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.floating]:
    """All the weights of contiguous blocks."""
    if kind is F64:
        return raw.view(np.float64)
    return decode_rows(raw[np.newaxis], kind, raw.size // kind.block_bytes * kind.block).reshape(-1)


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), blocks=st.integers(0, 40))
def test_random_bytes_are_judged_as_decoding_judges_them(kind: TensorType, seed: int, blocks: int) -> None:
    """Random scales are infinite or NaN once in 32; among many blocks there is one as a rule, among few there is none."""
    raw = np.random.default_rng(seed).integers(0, 256, blocks * kind.block_bytes, np.uint8)
    bad = np.flatnonzero(~np.isfinite(decoded(raw, kind)))
    found = first_nonfinite(raw, kind)
    if found is None:
        assert not bad.size
        assert kind is F64 or valid(kind, raw)  # which judges doubles as float32
    elif kind.name != "mxfp4":
        assert found[0] == bad[0]
        np.testing.assert_array_equal(found[1], decoded(raw, kind)[bad[0]])


@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_the_place_is_found_behind_many_tiles(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind.name == "nvfp4":
        pytest.skip("has neither NaN nor infinity")
    monkeypatch.setattr(finite, "_TILE", 4 * kind.block_bytes + 1)
    raw = np.zeros(100 * kind.block_bytes, np.uint8)
    assert first_nonfinite(raw, kind) is None
    raw[57 * kind.block_bytes : 58 * kind.block_bytes] = 0xFF
    found = first_nonfinite(raw, kind)
    assert found is not None
    assert found[0] == 57 * kind.block
    assert not np.isfinite(found[1])


@pytest.mark.parametrize("exponent", range(250, 256))
@pytest.mark.parametrize("digits", [0x00, 0x77])
def test_mxfp4_scales_near_the_end_of_float32(exponent: int, digits: int) -> None:
    """A block of zeros under the largest scale is finite, one of sixes is not; the exponent 255 is NaN whatever follows."""
    kind = tensor_type("mxfp4")
    raw = np.full(2 * kind.block_bytes, digits, np.uint8)
    raw[0], raw[kind.block_bytes] = 127, exponent
    finite_block = exponent < 255 and bool(np.isfinite(decoded(raw, kind)).all())
    assert (first_nonfinite(raw, kind) is None) == finite_block
    assert finite_block or (first_nonfinite(raw, kind) or (0,))[0] == kind.block
    assert valid(kind, raw) == (exponent < 255)


@pytest.mark.parametrize("name", ["i8", "i16", "i32", "i64", "nvfp4"])
def test_types_without_nan_are_not_looked_at(name: str) -> None:
    assert first_nonfinite(np.full(tensor_type(name).block_bytes * 8, 0xFF, np.uint8), tensor_type(name)) is None


def test_rows_may_have_any_shape() -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[1, 2] = np.inf
    assert first_nonfinite(rows.view(np.uint8), F32) == (6, np.inf)
