"""The kernels write ggml's bytes: every instruction set that runs here, on weights that are hard to encode identically."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gguf_tools.errors import InputError
from quant import ggml, kernels
from quant.encode import Block, Encoder, encode_block, encode_rows, widen
from quant.types import BF16, F16, F32, Q2_K, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, TensorType, row_bytes
from tests.quant.kernel_data import DATA, IMPORTANCES, importance
from tests.quant.quant_oracle import ROOT

FloatArray = NDArray[np.float32]
SETS = kernels.available()
KINDS = (None, *IMPORTANCES)
needs_kernels = pytest.mark.skipif(not SETS, reason="installed without a C compiler")


def by_ggml(dtype: TensorType, rows: FloatArray, columns: FloatArray | None) -> NDArray[np.uint8]:
    out = np.empty((rows.shape[0], row_bytes(dtype, rows.shape[1])), np.uint8)
    ggml.quantize_chunk(dtype, np.ascontiguousarray(rows), out, columns)
    return out


@cache
def case(data: str, kind: str | None, dtype: TensorType) -> tuple[FloatArray, FloatArray | None, NDArray[np.uint8]]:
    """Weights, importances, and ggml's bytes."""
    rng = np.random.default_rng(len(data))
    rows = DATA[data](rng, (5, 512))
    columns = importance(rng, 512, kind) if kind else None
    return rows, columns, by_ggml(dtype, rows, columns)


@needs_kernels
@pytest.mark.parametrize("dtype", kernels.TYPES, ids=str)
@pytest.mark.parametrize("name", SETS)
def test_bytes_are_ggmls(name: str, dtype: TensorType) -> None:
    differ = []
    for data in DATA:
        for kind in KINDS:
            rows, columns, theirs = case(data, kind, dtype)
            ours = np.full_like(theirs, 0xA5)
            peak, _ = kernels.encode_by(name, dtype, rows, F32, ours, columns)
            assert peak == np.abs(rows).max()
            if not np.array_equal(ours, theirs):
                differ.append((data, kind, int((ours != theirs).reshape(-1, dtype.block_bytes).any(1).sum())))
    assert not differ


@needs_kernels
@pytest.mark.parametrize("dtype", kernels.TYPES, ids=str)
def test_usual_weights_are_not_left_to_ggml(dtype: TensorType) -> None:
    for data in ("gaussian", "bf16", "heavy", "sparse", "zeros", "ties", "constant-blocks"):
        for kind in (None, "plain"):
            rows, columns, theirs = case(data, kind, dtype)
            assert kernels.encode_by(SETS[0], dtype, rows, F32, np.empty_like(theirs), columns)[1] == 0


@needs_kernels
@pytest.mark.parametrize("name", SETS)
def test_a_minimum_above_all_weights(name: str) -> None:
    """Where one column outweighs all others the fitted minimum can be above the largest weight, so that the order turns round."""
    rng = np.random.default_rng(37)
    rows = DATA["negative"](rng, (37, 1280))
    columns = importance(rng, 1280, "magnitudes")
    rows = widen((rows.view(np.uint32) >> 16).astype(np.uint16), F16)
    for dtype in (Q2_K, Q4_K, Q4_1):
        theirs = by_ggml(dtype, rows, columns)
        ours = np.empty_like(theirs)
        kernels.encode_by(name, dtype, rows, F32, ours, columns)
        np.testing.assert_array_equal(ours, theirs)


@needs_kernels
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(kernels.TYPES),
    st.sampled_from(SETS or ("",)),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from(tuple(DATA)),
    st.sampled_from(KINDS),
    st.sampled_from((F32, F16, BF16)),
    st.binary(min_size=64, max_size=512),
)
def test_any_size_source_and_bit_pattern(
    dtype: TensorType, name: str, n: int, blocks: int, data: str, kind: str | None, source: TensorType, drawn: bytes
) -> None:
    rng = np.random.default_rng(n)
    rows = DATA[data](rng, (n, blocks * dtype.block))
    bits = np.frombuffer(drawn[: len(drawn) // 4 * 4], np.uint32).copy()
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0x80FFFFFF
    rows.reshape(-1)[: bits.size] = bits.view(np.float32)[: rows.size]
    columns = importance(rng, rows.shape[1], kind) if kind else None
    if source is not F32:
        stored = (rows.view(np.uint32) >> 16).astype(np.uint16)  # any pattern of 16 bits, as either type
        stored[(stored & 0x7C00) == 0x7C00] &= 0x83FF
        rows = widen(stored, source)
    theirs = by_ggml(dtype, rows, columns)
    ours = np.full_like(theirs, 0xA5)
    kernels.encode_by(name, dtype, rows if source is F32 else stored, source, ours, columns)
    np.testing.assert_array_equal(ours, theirs)


@needs_kernels
@pytest.mark.parametrize("source", [F16, BF16], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_every_number_of_16_bits_is_widened_exactly(name: str, source: TensorType) -> None:
    stored = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    bits = np.where((stored & 0x7FFF) >= (0x7C00 if source is F16 else 0x7F80), 0, stored).astype(np.uint16)
    rows = widen(bits, source)
    ours = np.empty((256, row_bytes(Q8_0, 256)), np.uint8)
    kernels.encode_by(name, Q8_0, bits, source, ours, None)
    np.testing.assert_array_equal(ours, by_ggml(Q8_0, rows, None))
    peak, _ = kernels.encode_by(name, Q8_0, stored, source, ours, None)
    assert not np.isfinite(peak)


@needs_kernels
@pytest.mark.parametrize("dtype", [Q4_0, Q4_K, Q6_K], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_blocks_of_several_threads(dtype: TensorType, threads: int) -> None:
    rng = np.random.default_rng(threads)
    rows = DATA["mixed"](rng, (90, 768))
    columns = importance(rng, 768, "zeros")
    bounds = np.unique([0, 90, *rng.integers(0, 90, 12)])
    blocks = (Block(name="w", type=dtype, rows=rows[start:stop], imatrix=columns) for start, stop in pairwise(bounds))
    with Encoder(threads) as encoder:
        ours = np.concatenate([part.raw for part in encoder.encode(blocks)])
    np.testing.assert_array_equal(ours, by_ggml(dtype, rows, columns))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing remembered about the kernels, before and after, and the best ones in use."""
    monkeypatch.delenv(kernels.SETTING, raising=False)
    for known in (kernels._is_identical, kernels._choose):
        known.cache_clear()
    yield
    for known in (kernels._is_identical, kernels._choose):
        known.cache_clear()


@needs_kernels
@pytest.mark.usefixtures("fresh")
def test_kernels_that_differ_leave_the_type_to_ggml(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.encode_by

    def wrong(name: str, dtype: TensorType, rows: FloatArray, source: TensorType, out: NDArray[np.uint8], w: None):  # type: ignore[no-untyped-def]
        done = right(name, dtype, rows, source, out, w)
        out[-1, -1] ^= dtype is Q4_K
        return done

    monkeypatch.setattr(kernels, "encode_by", wrong)
    rows = case("gaussian", None, Q4_K)[0]
    with pytest.warns(RuntimeWarning, match="differ from this build of ggml for q4_K; ggml encodes it"):
        assert encode_rows(rows, Q4_K).tobytes() == by_ggml(Q4_K, rows, None).tobytes()
    assert not kernels.handles(Q4_K, F32, False)
    assert kernels.handles(Q6_K, F32, False)


@pytest.mark.usefixtures("fresh")
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SETTING, "off")
    assert kernels.chosen() is None
    assert not kernels.handles(Q8_0, F32, False)
    for name in SETS:
        monkeypatch.setenv(kernels.SETTING, name.lower())
        assert kernels.chosen() == name
    monkeypatch.setenv(kernels.SETTING, "mmx")
    with pytest.raises(InputError, match="TINYQ_KERNELS is 'mmx'; expected off"):
        encode_rows(np.ones((1, 32), np.float32), Q8_0)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("setting", ["", "off"])
@pytest.mark.parametrize("source", [F32, F16], ids=str)
def test_bad_weights_are_named_either_way(setting: str, source: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.SETTING, setting)
    rows = np.full((40, 256), 0x3C00, np.uint16)
    rows[33, 7] = 0x7C00
    given_rows = rows if source is F16 else widen(rows, F16)
    with pytest.raises(InputError, match="tensor w holds inf at row 33, column 7"):
        encode_block(Block(name="w", type=Q4_K, rows=given_rows, source=source))
    with pytest.raises(InputError, match=r"tensor w has a weight of magnitude 1e\+10, too large for q4_K; use bf16"):
        encode_rows(np.tile(np.array([1e10, -1e10], np.float32), (1, 128)), Q4_K, name="w")


@needs_kernels
@pytest.mark.usefixtures("fresh")
def test_arguments_are_checked_before_memory_is_touched() -> None:
    rows, out = np.ones((2, 256), np.float32), np.empty((2, 144), np.uint8)
    with pytest.raises(ValueError, match="rows have 1024 bytes; expected 2 contiguous rows of 256"):
        kernels.encode(Q4_K, rows[:1], F32, out)
    with pytest.raises(ValueError, match="importance is float64"):
        kernels.encode(Q4_K, rows, F32, out, np.ones(256))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no kernels named MMX"):
        kernels.encode_by("MMX", Q4_K, rows, F32, out, None)


@needs_kernels
def test_the_probe_shows_contracted_operations() -> None:
    """What fused multiply-add would change: the probe has weights whose product with the inverse scale is nearly a half step."""
    rows = kernels.probe()
    exact = rows.astype(np.float64).reshape(-1, 32)
    peak = exact[np.arange(len(exact)), np.abs(exact).argmax(1)]
    scale = (peak / -8).astype(np.float32)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)[:, None]
    single = rows.reshape(-1, 32) * inverse + np.float32(8.5)
    fused = (exact * inverse.astype(np.float64) + 8.5).astype(np.float32)
    assert np.count_nonzero(np.trunc(single) != np.trunc(fused)) > 100


def test_installing_works_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", "import setuptools; setuptools.setup()", "build_ext"]
    done = subprocess.run(
        [*command, "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")],
        cwd=ROOT,
        env={**os.environ, "CC": "/nonexistent/cc"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.so"))
