"""Conversion and surgery stream: their peak memory follows from their buffers, not from the model.

The goal is that 6 GB are converted in 2 GB of address space (`python -m benchmarks memory`); this is a tenth of it. A checkpoint
of 0.6 GB may take, beyond what the same command takes for a tiny model, a tenth of what the 2 GB leave. What it takes for a tiny
model (Python, numpy, torch, the threads' stacks and heaps) does not depend on the model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.memory import commands, sized, under_limit
from benchmarks.random_checkpoint import write_random
from benchmarks.shapes import Qwen3Shape
from gguf_tools.formats.gguf.header import read_header

SHAPE = Qwen3Shape(vocab=65_536, hidden=1024, layers=2, heads=16, kv_heads=8, head_dim=128, width=3072)
MODEL_BYTES, GOAL = 600_000_000, 2_000_000_000
PARTS = 10
"""The size and what is left of the goal are both divided by this."""
TYPE = "q8_0"
"""Memory does not depend on it, and this one is encoded quickly."""
PEAK_KB = 140_000
"""Measured were 90,000: numpy, the tokenizers library and its vocabulary, and a few MB of buffers."""

CHILD = """
import json, sys
from gguf_tools.cli import run
code = run(sys.argv[1:])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"code": code, "peak": int(status["VmHWM"].split()[0]), "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sharded checkpoint of the shape of a Qwen3-0.6B, with fewer layers."""
    folder = tmp_path_factory.mktemp("large")
    assert write_random(folder / "source", sized(SHAPE, MODEL_BYTES), 60 << 20) == pytest.approx(MODEL_BYTES, rel=0.05)
    yield folder / "source"
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def test_resident_memory_is_far_below_the_model(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "convert", large, out, "--type", "auto", "--threads", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["code"] == 0, done.stderr
    assert len(read_header(out).tensors) == len(sized(SHAPE, MODEL_BYTES).tensors())
    out.unlink()
    assert report["peak"] < PEAK_KB, report
    assert report["torch"] is False


def test_address_space_is_far_below_the_model(large: Path, tmp_path: Path) -> None:
    """Nothing is mapped whole: neither a shard nor the GGUF."""
    small = tmp_path / "small"
    write_random(small / "source", replace(SHAPE, vocab=8192, hidden=256, heads=4, kv_heads=2, head_dim=64, width=256))
    pairs = zip(commands(small / "source", small, TYPE), commands(large, large.parent, TYPE), strict=True)
    for (_, tiny, _), (what, command, written) in pairs:
        alone = under_limit(0, *tiny, "--threads", 2, arenas=1).address_space
        assert alone < GOAL
        limit = alone + (GOAL - alone) // PARTS
        found = under_limit(limit, *command, "--threads", 2, arenas=1)
        assert found.address_space <= limit, what
        assert written.exists()
