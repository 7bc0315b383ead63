"""Checks an installed wheel: encoding gives ggml's bytes, with the C kernels or without, as the argument says.

`python .ci/check_wheel.py kernels` or `… ggml`, run with a Python that has the wheel, numpy and llama-cpp-python.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution

import numpy as np

import quant
from quant import ggml, kernels
from quant.types import row_bytes


def check(expected: str) -> str:
    """A line that says what was found; AssertionError where it is not what is expected."""
    names = kernels.available()
    assert bool(names) == (expected == "kernels"), f"{quant.__file__} has kernels {names}; expected {expected}"
    rows = np.random.default_rng(1).standard_normal((8, 512), np.float32)
    for dtype in kernels.TYPES:
        theirs = np.empty((len(rows), row_bytes(dtype, rows.shape[1])), np.uint8)
        ggml.quantize_chunk(dtype, rows, theirs, None)
        ours = quant.quantize(rows, dtype.name)
        assert ours == theirs.tobytes(), f"{dtype.name}: the bytes are not ggml's"
        error = quant.dequantize(ours, dtype.name, rows.shape) - rows
        # The coarsest, q2_K, loses about a twelfth of the square of normal numbers.
        assert np.mean(error**2) < 0.15, f"{dtype.name}: decoded numbers are {error} off"
    said = distribution("tinyq-gguf").read_text("WHEEL") or ""
    assert ("Root-Is-Purelib: true" in said) == (expected == "ggml"), said
    return f"{len(kernels.TYPES)} types as ggml encodes them, by {kernels.describe()}"


if __name__ == "__main__":
    print(check(sys.argv[1]))
