"""Decoding by ggml, which tinyq uses, against gguf-py's numpy: million weights a second of one thread, by type, in the same run.

Both decode the same rows, in turns; the least of several times counts, in seconds of the thread's processor time. The numbers are
compared.
"""

from __future__ import annotations

import argparse
import os

import gguf
import numpy as np

from benchmarks.kernels import least
from gguf_tools.tables import text_table
from quant.encode import decode_rows, encode_rows
from quant.types import TensorType, tensor_type

TYPES = (
    "q4_K",
    "q5_K",
    "q6_K",
    "q2_K",
    "q3_K",
    "q8_0",
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "iq4_nl",
    "iq4_xs",
    "f16",
    "bf16",
)
ROWS, COLUMNS = 512, 2048


def measure(dtype: TensorType, repeat: int) -> tuple[float, float, bool]:
    """Million weights a second of ggml and of gguf-py, and whether they give equal numbers."""
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    raw = encode_rows(rows, dtype)
    ours = np.empty_like(rows)
    kind = gguf.GGMLQuantizationType(dtype.ggml_id)
    theirs = gguf.dequantize(raw, kind).reshape(rows.shape)
    by_ggml = rows.size / least(lambda: decode_rows(raw, dtype, COLUMNS, ours), repeat) / 1e6
    by_numpy = rows.size / least(lambda: gguf.dequantize(raw, kind), repeat) / 1e6
    return by_ggml, by_numpy, bool(np.array_equal(ours, theirs))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks decoding", description=__doc__)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args(arguments)
    body = []
    for name in given.types:
        ours, theirs, same = measure(tensor_type(name), given.repeat)
        body.append((name, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.1f}", "yes" if same else "NO"))
    print(text_table(("type", "ggml", "gguf-py", "ratio", "same numbers"), body, "<>>>>"))
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\nmillion weights a second of processor time, one thread; load average {load}")


if __name__ == "__main__":
    main()
