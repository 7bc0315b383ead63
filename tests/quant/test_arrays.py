"""`quant.quantize` and `quant.dequantize`: ggml's bytes from arrays of any shape, without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as by_gguf
from gguf.quants import quantize as gguf_quantize

import quant
from gguf_tools.errors import InputError
from quant import ggml
from quant.types import TYPES, TensorType, row_bytes
from tests.quant.quant_oracle import ROOT

WRITTEN = [kind for kind in TYPES if kind.encodes and not kind.on_grid]


def weights(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 0.05).astype(np.float32)


@pytest.mark.parametrize("kind", WRITTEN, ids=str)
def test_bytes_are_ggmls_and_come_back(kind: TensorType) -> None:
    array = weights(2, 3, 512)
    expected = np.empty((6, row_bytes(kind, 512)), np.uint8)
    ggml.quantize_chunk(kind, array.reshape(6, 512), expected, None)
    raw = quant.quantize(array, kind.name.upper(), threads=2)
    assert raw == expected.tobytes()
    if kind.name not in ("f32", "q1_0", "q2_0"):  # the last two are not in the package
        back = quant.dequantize(raw, kind.name, array.shape)
        assert back.shape == array.shape
        known = by_gguf(expected, GGMLQuantizationType(kind.ggml_id)).reshape(array.shape)
        np.testing.assert_allclose(back, known, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q5_1"])
def test_what_the_gguf_package_writes_too_is_equal(name: str) -> None:
    array = weights(7, 320)
    assert quant.quantize(array, name) == gguf_quantize(array, GGMLQuantizationType[name.upper()]).tobytes()


def test_other_numbers_and_layouts() -> None:
    array = weights(4, 256)
    expected = quant.quantize(array, "q4_K")
    assert quant.quantize(array.astype(np.float64), "q4_k") == expected
    assert quant.quantize(np.asfortranarray(array), "q4_K") == expected
    assert quant.quantize(array.tolist(), "q4_K") == expected
    half = array.astype(np.float16)
    assert quant.quantize(half, "q6_K") == quant.quantize(half.astype(np.float32), "q6_K")
    assert quant.quantize(array[0], "q8_0") == quant.quantize(array, "q8_0")[:272]
    assert quant.quantize(np.empty((0, 256), np.float32), "q4_K") == b""


def test_importances_of_columns_and_of_each_matrix() -> None:
    array, columns = weights(3, 2, 512), np.abs(weights(3, 512)) + np.float32(0.01)
    each = b"".join(quant.quantize(array[at], "q4_K", columns[at]) for at in range(3))
    assert quant.quantize(array, "q4_K", columns, threads=3) == each
    assert quant.quantize(array, "q4_K", columns[0]) != each
    with pytest.raises(InputError, match=r"importance has shape \(2, 512\); expected \(512,\) or \(3, 512\)"):
        quant.quantize(array, "q4_K", columns[:2])


@pytest.mark.parametrize("kind", ["q4_K", "bf16"])
def test_a_weight_that_is_not_finite_is_named_by_its_row_in_the_whole_array(kind: str) -> None:
    array = weights(3000, 256)  # three blocks of rows
    array[2345, 67] = np.nan
    with pytest.raises(InputError, match="holds nan at row 2345, column 67 "):
        quant.quantize(array, kind, threads=2)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(InputError, match="tensor type q4_z does not exist"):
        quant.quantize(weights(256), "q4_z")
    with pytest.raises(InputError, match="can be read but not written"):
        quant.quantize(weights(256), "i8")
    with pytest.raises(InputError, match="a row of 100 weights is not a multiple of 256"):
        quant.quantize(weights(2, 100), "q4_K")
    with pytest.raises(InputError, match="array has numbers of int64; expected float32"):
        quant.quantize(np.ones((2, 256), np.int64), "q4_K")
    with pytest.raises(InputError, match="array is a single number"):
        quant.quantize(1.0, "q4_K")
    with pytest.raises(InputError, match="threads is -1"):
        quant.quantize(weights(256), "q4_K", threads=-1)
    with pytest.raises(InputError, match="holds inf at row 0, column 0"):
        quant.quantize(np.full((1, 256), 1e300), "q4_K")
    with pytest.raises(InputError, match=r"data has 100 bytes; expected 144 for \(256,\) in q4_K"):
        quant.dequantize(bytes(100), "q4_K", (256,))
    with pytest.raises(InputError, match="type i8 is not one of weights"):
        quant.dequantize(bytes(100), "i8", (100,))
    with pytest.raises(InputError, match=r"shape is \(\)"):
        quant.dequantize(bytes(4), "f32", ())
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        quant.quantise  # noqa: B018


def test_neither_torch_nor_the_other_packages_are_needed() -> None:
    """As in an environment without them: their import fails."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'gguf_tools', 'surgery', 'gguf', 'click')))\n"
        "import numpy as np, quant\n"
        "raw = quant.quantize(np.linspace(-1, 1, 512, dtype=np.float32), 'q4_K', np.ones(512, np.float32))\n"
        "print(len(raw), np.abs(quant.dequantize(raw, 'q4_K', (512,)) - np.linspace(-1, 1, 512)).max() < 0.04)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["288", "True"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quant.quantize([[1.0] * 32], 8), r"type is 8 \(int\); expected str"),  # type: ignore[arg-type]
        (lambda: quant.quantize([[1.0] * 32], "q8_0", threads=float("nan")), "threads is nan"),  # type: ignore[arg-type]
        (lambda: quant.quantize([["a"] * 32], "q8_0"), "array has values of <U1; expected real numbers"),
        (lambda: quant.quantize([[1.0], [1.0, 2.0]], "f32"), "array is no array of numbers"),
        (lambda: quant.dequantize(b"", "f32", [4]), r"shape is \[4\] \(list\); expected tuple"),  # type: ignore[arg-type]
        (lambda: quant.dequantize(b"", "f32", (-1, 4)), "expected lengths of at least 0"),
        (lambda: quant.dequantize("text", "f32", (1,)), "data is of str; expected bytes"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_a_wrong_type(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
