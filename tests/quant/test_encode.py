"""Encoding and decoding: ggml's bytes whatever the blocks and threads, exact widening, measured narrowing, bad weights."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gguf_tools.errors import InputError, LlamaError
from quant import encode, ggml
from quant.encode import (
    Block,
    Encoder,
    decode_rows,
    encode_block,
    encode_rows,
    narrow,
    narrowing_loss,
    row_ranges,
    widen,
)
from quant.narrowing import Narrowing
from quant.types import BF16, F16, F32, Q4_0, Q4_K, Q8_0, TYPES, TensorType, row_bytes, tensor_type
from tests.quant.quant_oracle import ROOT, valid

FloatArray = NDArray[np.float32]

# Those on a grid, whose tables take ggml seconds to set up, are in test_bytes.
WRITTEN = [kind for kind in TYPES if kind.encodes and not kind.on_grid]
QUANTIZED = [kind for kind in WRITTEN if not kind.plain]

# Within the range of an F16 scale; zeros, ties, subnormals and steps of magnitude included.
finite = st.floats(-6e4, 6e4, width=32) | st.sampled_from((0.0, -0.0, 1e-40, 2.0**-24, 1.0, -1.0, 0.5, 1e-8))


@st.composite
def matrices(draw: st.DrawFn) -> FloatArray:
    """Up to 5 rows of 256 or 512 weights: a few drawn values spread over Gaussian ones of some scale, or alone."""
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from((256, 512))))
    few = draw(hnp.arrays(np.float32, 16, elements=finite))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows: FloatArray = (rng.standard_normal(shape) * draw(st.sampled_from((0.0, 1e-3, 0.02, 30.0)))).astype(np.float32)
    spots = rng.random(shape) < draw(st.sampled_from((0.0, 0.02, 1.0)))
    rows[spots] = rng.choice(few, int(spots.sum()))
    return rows


def reference(rows: FloatArray, kind: TensorType, imatrix: FloatArray | None = None) -> bytes:
    """All rows in one call of ggml_quantize_chunk."""
    out = np.empty((rows.shape[0], row_bytes(kind, rows.shape[1])), np.uint8)
    ggml.quantize_chunk(kind, rows, out, imatrix)
    assert valid(kind, out)
    return out.tobytes()


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(WRITTEN), st.integers(1, 5), st.booleans(), st.booleans())
def test_blocks_and_threads_do_not_change_bytes(
    rows: FloatArray, kind: TensorType, step: int, matrix: bool, strided: bool
) -> None:
    imatrix = np.abs(np.sin(np.arange(rows.shape[1]))).astype(np.float32) if matrix else None
    expected = reference(rows, kind, imatrix)
    given_rows = np.asfortranarray(rows) if strided else rows
    assert encode_rows(given_rows, kind, imatrix).tobytes() == expected
    blocks = (
        Block(name="t", type=kind, rows=rows[at : at + step], imatrix=imatrix) for at in range(0, len(rows), step)
    )
    with Encoder(threads=3) as encoder:
        assert b"".join(part.raw.tobytes() for part in encoder.encode(blocks)) == expected


@pytest.mark.parametrize("kind", WRITTEN, ids=str)
def test_rows_longer_and_shorter_than_a_tile(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).standard_normal((7, 768)).astype(np.float32)
    expected = reference(rows, kind)
    for tile in (256, 768, 1600, 1 << 16):
        monkeypatch.setattr(encode, "_TILE", tile)
        assert encode_rows(rows, kind).tobytes() == expected


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind.name not in ("q1_0", "q2_0")], ids=str)
def test_decoding_agrees_with_the_gguf_package(kind: TensorType) -> None:
    rows = (np.random.default_rng(2).standard_normal((4, 512)) * 0.05).astype(np.float32)
    raw = encode_rows(rows, kind)
    decoded = decode_rows(raw, kind, 512)
    np.testing.assert_allclose(decoded, dequantize(raw, GGMLQuantizationType(kind.ggml_id)), rtol=1e-6, atol=1e-8)
    # The rounding is about that of an evenly spaced grid of as many bits over the range of a block.
    assert np.sqrt(np.mean((decoded - rows) ** 2)) < 0.05 * 3.5 / 2 ** int(kind.bits)


@settings(max_examples=30, deadline=None)
@given(matrices(), st.sampled_from(WRITTEN))
def test_what_is_decoded_is_stable(rows: FloatArray, kind: TensorType) -> None:
    raw = encode_rows(rows, kind)
    decoded = decode_rows(raw, kind, rows.shape[1])
    assert decoded.tobytes() == decode_rows(raw.copy(), kind, rows.shape[1]).tobytes()
    if kind in (F32, BF16, F16, Q8_0):  # a value of these types is the nearest one to itself; Q8_0's scale repeats
        again = decode_rows(encode_rows(decoded, kind), kind, rows.shape[1])
        np.testing.assert_allclose(again, decoded, rtol=1e-3 if kind is Q8_0 else 0, atol=1e-7 if kind is Q8_0 else 0)


@pytest.mark.parametrize("source", QUANTIZED, ids=str)
def test_stored_rows_are_decoded_on_the_way(source: TensorType) -> None:
    rows = (np.random.default_rng(3).standard_normal((5, 256)) * 0.05).astype(np.float32)
    stored = encode_rows(rows, source)
    block = encode.encode_block(Block(name="t", type=Q4_K, rows=stored, source=source))
    assert block.raw.tobytes() == reference(decode_rows(stored, source, 256), Q4_K) or source is Q4_K
    kept = encode.encode_block(Block(name="t", type=source, rows=stored, source=source))
    assert kept.raw.tobytes() == stored.tobytes()


def test_widening_is_exact_for_every_bit_pattern() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    as_bf16 = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(widen(bits, BF16), as_bf16)
    finite_bf16 = np.isfinite(as_bf16)
    np.testing.assert_array_equal(widen(bits, BF16).view(np.uint32)[finite_bf16], as_bf16.view(np.uint32)[finite_bf16])
    as_f16 = bits.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(widen(bits, F16), as_f16)
    np.testing.assert_array_equal(np.signbit(widen(bits, F16)), np.signbit(as_f16))
    with pytest.raises(ValueError, match="dtype is q8_0; widen expects F16 or BF16"):
        widen(bits, Q8_0)


def test_narrowing_is_the_inverse_of_widening_and_goes_to_the_nearest() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for dtype in (F16, BF16):
        values = widen(bits, dtype)
        finite = np.isfinite(values)
        np.testing.assert_array_equal(narrow(values, dtype)[finite], bits[finite])
        assert np.isnan(widen(narrow(values[np.isnan(values)], dtype), dtype)).all()
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(100_000) * np.exp2(rng.integers(-30, 15, 100_000))).astype(np.float32)
    np.testing.assert_array_equal(narrow(values, F16), values.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(
        narrow(values, BF16), torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    )
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0xBF808000], np.uint32).view(np.float32)
    assert [hex(n) for n in narrow(ties, BF16)] == ["0x3f80", "0x3f82", "0x3f81", "0x7f80", "0xbf80"]
    assert narrow(np.empty(0, np.float32), BF16).size == 0


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, (3, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_narrowing_is_measured(rows: FloatArray) -> None:
    with np.errstate(over="ignore"):
        found, narrow = narrowing_loss(rows, F16), rows.astype(np.float16).astype(np.float64)
    kept = np.isfinite(narrow)
    change = np.abs(narrow - rows)[kept]
    assert found.weights == rows.size
    assert found.changed == int(np.count_nonzero(narrow != rows))
    assert found.overflowed == rows.size - np.count_nonzero(kept)
    np.testing.assert_allclose(found.max_abs_change, change.max(initial=0.0), rtol=1e-6)
    np.testing.assert_allclose(found.sum_sq_change, np.sum(change**2), rtol=1e-5)
    np.testing.assert_allclose(found.sum_sq, np.sum(rows.astype(np.float64) ** 2), rtol=1e-9)


def test_narrowing_to_bf16() -> None:
    exact = widen(np.arange(0x3F80, 0x4080, dtype=np.uint16).reshape(2, -1), BF16)
    assert narrowing_loss(exact, BF16) == Narrowing(weights=256, sum_sq=float(np.sum(exact.astype(np.float64) ** 2)))
    bent = exact.copy()
    bent[0, 3] = np.nextafter(bent[0, 3], np.float32(2))
    found = narrowing_loss(bent, BF16)
    assert (found.changed, found.overflowed, found.max_abs_change) == (1, 0, 2.0**-23)
    assert narrowing_loss(np.full((1, 2), 3.4e38, np.float32), BF16).overflowed == 2
    total = found + found
    assert (total.weights, total.changed, total.rms_change) == (512, 2, found.rms_change)
    with pytest.raises(InputError, match="tensor w holds inf at row 0, column 1"):
        narrowing_loss(np.array([[0, np.inf]], np.float32), BF16, "w")


@pytest.mark.parametrize("kind", WRITTEN, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(kind: TensorType, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_TILE", 512)
    rows = np.ones((5, 256), np.float32)
    rows[3, 7] = bad
    with pytest.raises(InputError, match=rf"tensor blk\.0\.ffn_up\.weight holds {bad} at row 3, column 7"):
        encode_rows(rows, kind, name="blk.0.ffn_up.weight")


@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind is not F32 and kind is not BF16], ids=str)
@pytest.mark.parametrize("large", [1e10, 1e30])
def test_weights_beyond_a_types_range_are_named(kind: TensorType, large: float) -> None:
    rows = np.full((1, 256), large, np.float32)
    rows[0, ::2] = -1.0
    with pytest.raises(
        InputError,
        match=rf"tensor w has a weight of magnitude 1e\+[13]0, too large for {kind.name}( \(128 of .*\))?; use bf16",
    ):
        encode_rows(rows, kind, name="w")


def test_large_weights_pass_through_the_types_that_hold_them() -> None:
    rows = np.full((1, 32), 2.0**100, np.float32)
    bits = encode_rows(rows, BF16).view(np.uint16)
    widened = encode.encode_block(Block(name="t", type=F32, rows=bits, source=BF16))
    assert widened.raw.tobytes() == rows.tobytes()


def test_weights_beyond_bf16_are_named() -> None:
    with pytest.raises(InputError, match=r"has a weight of magnitude 3\.4e\+38, too large for bf16"):
        encode_rows(np.full((1, 32), 3.4e38, np.float32), BF16)


def test_what_does_not_fit_is_said() -> None:
    rows = np.ones((2, 640), np.float32)
    with pytest.raises(InputError, match="row of 640 weights is not a multiple of 256"):
        encode_rows(rows, Q4_K)
    with pytest.raises(InputError, match="importance matrix has 639 values for tensor w; expected 640"):
        encode_rows(rows, Q4_0, np.ones(639, np.float32), name="w")
    with pytest.raises(InputError, match="importance matrix has NaN or infinity for tensor w"):
        encode_rows(rows, Q4_0, np.full(640, np.nan, np.float32), name="w")
    with pytest.raises(InputError, match="cannot be written as i8"):
        encode_rows(rows, tensor_type("i8"))
    with pytest.raises(
        InputError, match=r"array of q4_0 rows has shape \(2, 9\); expected \(rows, 360\) for 640 weights"
    ):
        decode_rows(np.zeros((2, 9), np.uint8), Q4_0, 640)
    with pytest.raises(ValueError, match="rows are float64 of shape"):
        encode_rows(rows.astype(np.float64), Q4_0)


def test_row_ranges() -> None:
    cut = [(part.start, part.stop, part.matrix) for part in row_ranges((2, 5, 100), by_matrix=True, weights=200)]
    assert cut == [(0, 2, 0), (2, 4, 0), (4, 5, 0), (5, 7, 1), (7, 9, 1), (9, 10, 1)]
    assert [part.stop for part in row_ranges((2, 5, 100), by_matrix=False, weights=400)] == [4, 8, 10]
    assert [part.stop for part in row_ranges((64,), by_matrix=True)] == [1]
    assert [part.stop for part in row_ranges((2, 1000), by_matrix=False, weights=10)] == [1, 2]
    assert list(row_ranges((0, 8), by_matrix=True)) == []


@pytest.mark.parametrize("kind", [Q8_0, F16], ids=str)
@pytest.mark.parametrize("allow_nonfinite", [False, True])
@pytest.mark.parametrize("measure", [1, 700, 5000])
def test_measured_blocks(kind: TensorType, allow_nonfinite: bool, measure: int) -> None:
    rows = np.random.default_rng(4).standard_normal((1500, 256)).astype(np.float32)  # three tiles
    block = Block(name="t", type=kind, rows=rows, measure=measure, allow_nonfinite=allow_nonfinite)
    with Encoder(1) as encoder:
        (part,) = encoder.encode([block])
    change = (decode_rows(part.raw, kind, 256) - rows)[:measure].astype(np.float64)
    assert part.loss is not None
    assert part.loss.weights == change.size
    assert part.loss.changed == np.count_nonzero(change)
    np.testing.assert_allclose(part.loss.rms_change, np.sqrt(np.mean(change**2)), rtol=1e-6)
    assert encode.encode_block(replace(block, measure=0)).loss is None


def blocks(count: int, drawn: list[int], bad: int = -1) -> Iterator[Block]:
    for at in range(count):
        drawn.append(at)
        rows = np.full((1, 256), np.nan if at == bad else at, np.float32)
        yield Block(name=f"t{at}", type=F32, rows=lambda rows=rows: rows)  # type: ignore[misc]


def test_order_and_window() -> None:
    drawn: list[int] = []
    with Encoder(threads=2, ahead=3) as encoder:
        for at, part in enumerate(encoder.encode(blocks(40, drawn))):
            assert part.raw.view(np.float32)[0, 0] == at
            assert len(drawn) <= at + 5


def test_an_error_ends_the_threads() -> None:
    before = threading.active_count()
    drawn: list[int] = []
    with pytest.raises(InputError, match="tensor t5 holds nan"), Encoder(threads=2, ahead=2) as encoder:
        for _ in encoder.encode(blocks(1000, drawn, bad=5)):
            pass
    assert len(drawn) < 12
    assert threading.active_count() == before


def test_an_interrupt_ends_the_threads() -> None:
    def interrupted() -> Iterator[Block]:
        yield from blocks(7, [])
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Encoder(threads=2) as encoder:
        list(encoder.encode(interrupted()))
    with Encoder(threads=2) as encoder:
        next(encoder.encode(blocks(100, [])))  # and so does giving up half way
    assert threading.active_count() == before
    with pytest.raises(InputError, match="threads is 0; expected 1 or more"):
        Encoder(0)


def test_neither_llama_cpp_nor_torch_is_imported() -> None:
    code = "import sys, quant.encode; quant.ggml.library(); print({'llama_cpp', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_rows_of_nothing() -> None:
    assert encode_rows(np.empty((0, 256), np.float32), Q4_K).shape == (0, 144)
    assert encode_rows(np.empty((3, 0), np.float32), Q4_K).shape == (3, 0)


def test_a_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    ggml.library.cache_clear()
    try:
        with pytest.raises(LlamaError, match="has no libggml-base"):
            ggml.library()
        (tmp_path / "libggml-base.so").write_bytes(b"not a library")
        (tmp_path / "libggml-base.dylib").write_bytes(b"not a library")
        with pytest.raises(LlamaError, match="cannot be used"):
            ggml.library()
    finally:
        ggml.library.cache_clear()


@pytest.mark.parametrize("kind", WRITTEN, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_plain_types_keep_what_is_not_finite(kind: TensorType, bad: float) -> None:
    rows = np.ones((2, 256), np.float32)
    rows[1, 7] = bad
    block = Block(name="w", type=kind, rows=rows, measure=len(rows), allow_nonfinite=True)
    if not kind.plain:
        with pytest.raises(InputError, match=r"tensor w holds .* at row 1, column 7"):
            encode_block(block)
        return
    encoded = encode_block(block)
    assert (encoded.nonfinite, encoded.overflowed) == (1, 0)
    assert encoded.loss is not None
    assert (encoded.loss.weights, encoded.loss.changed, encoded.loss.overflowed) == (512, 0, 0)
    np.testing.assert_array_equal(decode_rows(encoded.raw, kind, 256), rows)


@pytest.mark.parametrize("name", ["iq2_xxs", "iq2_xs", "iq1_s"])
def test_types_that_need_an_importance_matrix_say_so(name: str) -> None:
    """ggml would end the process."""
    with pytest.raises(InputError, match=f"tensor w needs an importance matrix to be written as {name}"):
        encode_rows(np.ones((1, 256), np.float32), tensor_type(name), name="w")


@pytest.mark.parametrize(("peak", "importance"), [(1e10, 1.0), (1e38, 1.0), (1.0, 1e25), (1.0, -1.0)])
def test_what_ggml_cannot_place_on_a_grid_is_refused(peak: float, importance: float) -> None:
    """ggml would end the process for some of these: no point of the grid is nearest to infinity."""
    rows = np.full((1, 256), peak, np.float32)
    with pytest.raises(
        InputError, match=r"too large for iq3_s|importance matrix has a value that is negative or 1e\+20"
    ):
        encode_rows(rows, tensor_type("iq3_s"), np.full(256, importance, np.float32))
