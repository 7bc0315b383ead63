"""Memory of a comparison at long contexts: `tinyq eval --context N` on a random checkpoint of Qwen3-0.6B's sizes.

    python -m benchmarks memory --context 4096 8192 [--layers 2] [--kv-type f16] [--folder DIR]

The peak resident memory of tinyq (with the torch reference) and of llama.cpp's process are given, and what is left of each after
the weights and llama.cpp's KV cache, both of which are known from the shapes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import cycle
from math import prod
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.random_checkpoint import write_random
from benchmarks.shapes import QWEN3_0_6B, Qwen3Shape
from gguf_tools.evaluation.card.questions import SETS
from gguf_tools.evaluation.run import STREAMED_BYTES
from gguf_tools.tables import text_table

CACHE_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
CHILD = """
import json, resource, sys
from gguf_tools.cli import run
code = run(sys.argv[1:])
own, child = (resource.getrusage(who).ru_maxrss << 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({"code": code, "own": own, "child": child}))
"""


@dataclass(frozen=True)
class Comparison:
    """Peaks of one comparison in bytes: of tinyq, and of llama.cpp's process; and what of them is known from the shapes."""

    own: int
    child: int
    reference: int
    file: int
    cache: int
    positions: int
    seconds: float

    @property
    def row(self) -> tuple[str, ...]:
        """The columns after the context: both peaks, the weights and the cache, and what is left."""
        left = self.own - self.reference, self.child - self.file - self.cache
        sizes = (self.own, self.reference, left[0], self.child, self.file, self.cache, left[1])
        return (f"{self.positions:,}", *(f"{size / 1e6:,.0f}" for size in sizes), f"{self.seconds:.0f} s")


def text_of(tokenizer: Path, tokens: int) -> str:
    """The built-in stories, repeated up to this many tokens."""
    encode = Tokenizer.from_file(str(tokenizer)).encode
    words: list[str] = []
    count = 0
    for story in cycle(SETS["bundled"][2].read_text("utf-8").split("\n\n")):
        words.append(story)
        count += len(encode(story, add_special_tokens=False).ids)
        if count > tokens:
            return "\n".join(words)
    raise AssertionError


def reference_bytes(shape: Qwen3Shape) -> int:
    """Bytes of the reference's float32 weights in memory: all, or those outside the layers and one layer if they are streamed."""
    sizes = {name: 4 * prod(dims) for name, dims in shape.tensors().items()}
    layers = sum(size for name, size in sizes.items() if ".layers." in name)
    whole = sum(sizes.values())
    return whole - layers + layers // shape.layers if whole > STREAMED_BYTES else whole


def compared(source: Path, file: Path, shape: Qwen3Shape, context: int, kv_type: str) -> Comparison:
    """Compare the file with its source over pieces of `context` tokens. Raises RuntimeError with a failure's last lines."""
    folder = file.parent
    (folder / "text.txt").write_text(text_of(source / "tokenizer.json", context), "utf-8")
    (folder / "prompts.txt").write_text("Once upon a time\n", "utf-8")
    options = ["--text", folder / "text.txt", "--prompts", folder / "prompts.txt", "--tokens", 1, "--oracle", "none"]
    options += [
        "--context",
        context,
        "--kv-type",
        kv_type,
        "--no-speed",
        "--timeout",
        0,
        "--json",
        folder / "report.json",
    ]
    command = ["eval", file, "--reference", source, "--force", "--quiet", *options]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, command)], capture_output=True, text=True, check=False
    )
    last = (done.stdout.splitlines() or [""])[-1]
    if done.returncode or not last.startswith("{") or json.loads(last)["code"]:
        raise RuntimeError(done.stderr[-2000:])
    peaks = json.loads(last)
    report = json.loads((folder / "report.json").read_text("utf-8"))
    cache = 2 * context * shape.layers * shape.kv_heads * shape.head_dim * CACHE_BYTES[kv_type]
    return Comparison(
        own=peaks["own"],
        child=peaks["child"],
        reference=reference_bytes(shape),
        file=file.stat().st_size,
        cache=int(cache),
        positions=report["fidelity"]["n_tokens"],
        seconds=time.perf_counter() - start,
    )


def measure(folder: Path, contexts: list[int], layers: int, kv_type: str) -> None:
    """Measure each context and print the table."""
    shape = replace(QWEN3_0_6B, layers=layers)
    source, file = folder / "source", folder / "file.gguf"
    write_random(source, shape)
    subprocess.run(
        [sys.executable, "-m", "gguf_tools", "convert", source, file, "--type", "bf16", "--quiet"], check=True
    )
    rows = [(f"{n:,}", *compared(source, file, shape, n, kv_type).row) for n in contexts]
    head = ("context", "positions", "tinyq", "reference", "left", "llama.cpp", "file", "KV cache", "left", "time")
    print(f"Qwen3-0.6B's sizes, {layers} layers, {kv_type} cache; megabytes of resident memory")
    print(text_table(head, rows))
