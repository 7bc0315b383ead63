"""What layer surgery on a large GGUF costs: moving layers against copying the file, and a swap in place.

    python -m benchmarks.surgery [--gigabytes 1] [--folder DIR] [--repeat 7]

Makes a GGUF of random bytes in Q4_K with a vocabulary of Qwen3's size, and prints medians. Both sides write through to the
disk (fsync); the copy alone, which `cp` does not flush, is shown too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import RESERVE_BYTES, ValueType, array, pack_header, place, string, u32
from gguf_tools.formats.journal import undo
from gguf_tools.machine import available_cores
from quant.types import F32, Q4_K, TensorType
from surgery.gguf.in_place import apply_in_place, plan_in_place
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.recipe import parse_text

HIDDEN, WIDTH, VOCABULARY = 2048, 6144, 151_936
RECIPE = "swap(12:13, 16:17) + bridge(5:20) + delete(3)"
"""Deletes as much as it copies, so that the result is as large as the source."""


def make(path: Path, gigabytes: float) -> None:
    """A Qwen3-like file of random bytes, its weights finite."""
    layer: list[tuple[str, tuple[int, ...], TensorType]] = [
        ("attn_norm.weight", (HIDDEN,), F32),
        ("attn_q.weight", (HIDDEN, HIDDEN), Q4_K),
        ("attn_k.weight", (HIDDEN // 2, HIDDEN), Q4_K),
        ("attn_v.weight", (HIDDEN // 2, HIDDEN), Q4_K),
        ("attn_output.weight", (HIDDEN, HIDDEN), Q4_K),
        ("ffn_norm.weight", (HIDDEN,), F32),
        ("ffn_gate.weight", (WIDTH, HIDDEN), Q4_K),
        ("ffn_up.weight", (WIDTH, HIDDEN), Q4_K),
        ("ffn_down.weight", (HIDDEN, WIDTH), Q4_K),
    ]
    _, a_layer = place(layer)
    ends: list[tuple[str, tuple[int, ...], TensorType]] = [("token_embd.weight", (VOCABULARY, HIDDEN), Q4_K)]
    _, outside = place(ends)
    layers = max(28, round((gigabytes * 1e9 - outside) / a_layer))
    tensors = [*ends, *((f"blk.{n}.{name}", shape, kind) for n in range(layers) for name, shape, kind in layer)]
    entries, size = place(tensors)
    metadata = {
        "general.architecture": string("qwen3"),
        "qwen3.block_count": u32(layers),
        "tokenizer.ggml.tokens": array(ValueType.STRING, [f"token{n}" for n in range(VOCABULARY)]),
        "tokenizer.ggml.merges": array(ValueType.STRING, [f"to ken{n}" for n in range(VOCABULARY)]),
        keys.RESERVE: string(" " * RESERVE_BYTES),
    }
    # Without this bit in any byte no scale is infinite or NaN.
    piece = (np.frombuffer(os.urandom(1 << 24), np.uint8) & 0xBF).tobytes()
    with path.open("wb") as stream:
        stream.write(pack_header(metadata, entries, 32))
        for start in range(0, size, len(piece)):
            stream.write(piece[: size - start])
        stream.flush()
        os.fsync(stream.fileno())


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def copy(source: Path, target: Path, flush: bool) -> None:
    """The file copied as shutil does it."""
    shutil.copyfile(source, target)
    if flush:
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What layer surgery on a large GGUF costs.")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None, help="where the files lie; a temporary folder by default")
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        source, target = Path(name) / "source.gguf", Path(name) / "target.gguf"
        make(source, given.gigabytes)

        def operate(lax: bool) -> None:
            plan = plan_gguf(open_layered(source), parse_text(RECIPE))
            write_plan(plan, target, threads=available_cores(), allow_nonfinite=lax)

        def swap() -> None:
            apply_in_place(plan_in_place(plan_gguf(open_layered(source), parse_text("swap(3:11)"))))

        # In turns, so that what else the machine does falls on all alike.
        times: dict[str, list[float]] = {"copy": [], "flushed": [], "surgery": [], "unchecked": [], "in place": []}
        for _ in range(given.repeat):
            for what, action in {
                "copy": lambda: copy(source, target, False),
                "flushed": lambda: copy(source, target, True),
                "surgery": lambda: operate(False),
                "unchecked": lambda: operate(True),
            }.items():
                times[what].append(seconds(action))
                target.unlink()
            times["in place"].append(seconds(swap))
            undo(source)
        plain, flushed, surgery, unchecked, in_place = map(statistics.median, times.values())
        print(f"file                      {source.stat().st_size / 1e9:8.2f} GB")
        print(f"copy                      {plain:8.3f} s")
        print(f"copy, flushed             {flushed:8.3f} s")
        print(f"surgery, flushed          {surgery:8.3f} s   {surgery / flushed:.2f} × copy, flushed")
        print(f"--allow-nonfinite         {unchecked:8.3f} s   {unchecked / flushed:.2f} × copy, flushed")
        print(f"swap in place, flushed    {in_place * 1000:8.1f} ms")


if __name__ == "__main__":
    main()
