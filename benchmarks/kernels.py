"""The kernels against ggml's encoders: million weights a second, by type, instruction set and threads, in the same run.

Both encode the same matrix of bell-shaped weights, in turns; the least of several times counts, in seconds of processor time
(of each thread), so that other work on the machine disturbs little. Bytes are compared.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gguf_tools.machine import available_cores
from gguf_tools.tables import text_table
from quant import ggml, kernels
from quant.kernels import TYPES
from quant.types import F32, TensorType, row_bytes, tensor_type

ROWS, COLUMNS = 64, 4096


@dataclass(frozen=True)
class Speed:
    """Million weights a second of ggml and of each set of kernels, by one thread and by all threads together."""

    type: str
    weighted: bool
    ggml: tuple[float, float]
    sets: dict[str, tuple[float, float]]
    same: bool


def least(work: Callable[[], object], repeat: int) -> float:
    """The least processor time of the calling thread, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


def rate(work: Callable[[], object], threads: int, repeat: int) -> tuple[float, float]:
    """Million weights a second: of one thread, and the sum over several that run at once."""
    weights = ROWS * COLUMNS / 1e6
    alone = weights / least(work, repeat)
    if threads < 2:
        return alone, alone
    with ThreadPoolExecutor(threads) as pool:
        together = sum(weights / spent for spent in pool.map(lambda _: least(work, repeat), range(threads)))
    return alone, together


def measure(dtype: TensorType, weighted: bool, threads: int, repeat: int) -> Speed:
    """One type, with or without an importance matrix."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((ROWS, COLUMNS)) * 0.02).astype(np.float32)
    importance = rng.exponential(1.0, COLUMNS).astype(np.float32) if weighted else None

    def by_ggml() -> bytes:
        out = np.empty((ROWS, row_bytes(dtype, COLUMNS)), np.uint8)
        ggml.quantize_chunk(dtype, rows, out, importance)
        return out.tobytes()

    def by_kernels(name: str) -> bytes:
        out = np.empty((ROWS, row_bytes(dtype, COLUMNS)), np.uint8)
        kernels.encode_by(name, dtype, rows, F32, out, importance)
        return out.tobytes()

    sets = {name: rate(lambda name=name: by_kernels(name), threads, 4 * repeat) for name in kernels.available()}  # type: ignore[misc]
    theirs = by_ggml()
    same = all(by_kernels(name) == theirs for name in sets)
    return Speed(dtype.name, weighted, rate(by_ggml, threads, repeat), sets, same)


def report(found: list[Speed], threads: int) -> str:
    """The table."""
    names = kernels.available()
    head = (
        "type",
        "matrix",
        f"ggml, 1 / {threads} threads",
        *names,
        *(f"{name} × ggml" for name in names),
        "same bytes",
    )
    body = [
        (
            one.type,
            "yes" if one.weighted else "no",
            f"{one.ggml[0]:.0f} / {one.ggml[1]:.0f}",
            *(f"{one.sets[name][0]:.0f} / {one.sets[name][1]:.0f}" for name in names),
            *(f"{one.sets[name][0] / one.ggml[0]:.1f}" for name in names),
            "yes" if one.same else "NO",
        )
        for one in found
    ]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    shown = text_table(head, body)
    return f"{shown}\n\nmillion weights a second of processor time; {available_cores()} cores, load average {load}"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernels", description=__doc__)
    parser.add_argument("--types", nargs="+", default=[dtype.name for dtype in TYPES])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores())
    given = parser.parse_args(arguments)
    found = [
        measure(tensor_type(name), weighted, given.threads, given.repeat)
        for name in given.types
        for weighted in (False, True)
    ]
    print(report(found, given.threads))


if __name__ == "__main__":
    main()
