"""Address space that conversion and surgery take: a random checkpoint of several gigabytes under a limit (RLIMIT_AS).

    python -m benchmarks memory [--gigabytes 6] [--limit 2] [--folder DIR]
    python -m benchmarks memory --context 4096 8192 [--layers 2] [--kv-type f16] [--folder DIR]  # see long_context

The limit counts all that is mapped: Python, numpy, torch, the threads' stacks, every buffer. Each command runs in a child process
that sets it before anything is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from benchmarks.long_context import CACHE_BYTES, measure
from benchmarks.random_checkpoint import write_random
from benchmarks.shapes import Qwen3Shape
from gguf_tools.tables import text_table

SHAPE = Qwen3Shape(vocab=151_936, hidden=2048, layers=0, heads=16, kv_heads=8, head_dim=128, width=6144)
"""The sizes of Qwen3-1.7B; as many layers as the size asked for needs."""
CHILD = """
import json, resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
import torch  # which none of these commands needs, and others do
from gguf_tools.cli import run
code = run(sys.argv[2:])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found = {key: int(status[key].split()[0]) << 10 for key in ("VmPeak", "VmHWM")}
print(json.dumps({"code": code, **found}))
"""


@dataclass(frozen=True)
class Peak:
    """A command's peak address space and peak resident memory in bytes, torch included, and seconds."""

    address_space: int
    resident: int
    seconds: float


def under_limit(limit: int, *arguments: object, arenas: int = 0) -> Peak:
    """Run `tinyq` with `arguments` in at most `limit` bytes of address space (0: without a limit).

    `arenas` limits glibc's heaps (0: one for each thread), each of which reserves 64 MiB of addresses at some moment. Raises
    RuntimeError with its last lines where it fails.
    """
    start = time.perf_counter()
    command = [sys.executable, "-c", CHILD, str(limit), *map(str, arguments)]
    heaps = {"MALLOC_ARENA_MAX": str(arenas)} if arenas else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **heaps})
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode or not last.startswith("{") or json.loads(last)["code"]:
        raise RuntimeError(f"{arguments[0]}: {done.stderr[-2000:]}")
    found = json.loads(last)
    return Peak(found["VmPeak"], found["VmHWM"], time.perf_counter() - start)


def sized(shape: Qwen3Shape, size: int) -> Qwen3Shape:
    """The shape with as many layers as make up `size` bytes in bf16, at least two."""
    ends, one = (sum(2 * prod(dims) for dims in replace(shape, layers=layers).tensors().values()) for layers in (0, 1))
    return replace(shape, layers=max(2, round((size - ends) / (one - ends))))


def commands(source: Path, folder: Path, kind: str) -> Sequence[tuple[str, tuple[object, ...], Path]]:
    """What is measured with a GGUF of type `kind`: a name, the arguments, and what is written."""
    made, operated, out = folder / f"{kind}.gguf", folder / "operated.gguf", folder / "operated"
    ops = ("--swap", "0:1", "--bridge", "0:1", "--interpolate", "0:1@0.5")
    return (
        (f"convert to {kind}", ("convert", source, made, "--type", kind, "--quiet"), made),
        ("surgery on the GGUF", ("surgery", made, operated, *ops, "--quiet"), operated),
        ("surgery to a folder", ("surgery", source, out, *ops, "--quiet"), out),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--limit", type=float, default=2.0, help="gigabytes of address space; 0 for none")
    parser.add_argument("--folder", type=Path, default=None, help="where the files lie; a temporary folder by default")
    parser.add_argument("--context", type=int, nargs="+", help="measure `tinyq eval` at these contexts instead")
    parser.add_argument("--layers", type=int, default=2, help="with --context: layers of the checkpoint")
    parser.add_argument("--kv-type", choices=list(CACHE_BYTES), default="f32", help="with --context: llama.cpp's cache")
    given = parser.parse_args(arguments)
    if given.context:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            measure(Path(name), given.context, given.layers, given.kv_type)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        total = write_random(folder / "source", sized(SHAPE, int(given.gigabytes * 1e9)))
        for what, command, written in commands(folder / "source", folder, "q4_k_m"):
            peak = under_limit(int(given.limit * 1e9), *command)
            size = sum(path.stat().st_size for path in (written.iterdir() if written.is_dir() else [written]))
            memory = (f"{peak.address_space / 1e6:.0f} MB", f"{peak.resident / 1e6:.0f} MB")
            rows.append((what, f"{size / 1e9:.2f} GB", *memory, f"{peak.seconds:.0f} s"))
    print(f"a checkpoint of {total / 1e9:.2f} GB, {given.limit:g} GB of address space")
    print(text_table(("", "written", "address space", "resident", "time"), rows))


if __name__ == "__main__":
    main()
