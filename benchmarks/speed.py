"""One-pass conversion against llama.cpp's two steps: wall time and peak memory, in turns, on the same machine.

The checkpoint is random, in bf16, sharded (1.2 GB), of Qwen3-0.6B's shape or of one with experts. Ours is
`tinyq convert --type T`, which reads the checkpoint, quantizes, proves the vocabulary and flushes to the disk; theirs is
convert_hf_to_gguf.py to BF16 and then `llama_model_quantize`, which flush nothing. Everything runs in child processes, with as
many threads. The tensors of both results are compared byte by byte. Also measured: `tinyq quantize` against
`llama_model_quantize` from the same BF16 file, and the floor, which is reading the checkpoint and writing the result (`cat` of
both).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.shapes import SHAPES, write_checkpoint
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.machine import available_cores
from gguf_tools.tables import text_table
from quant.recipes import recipe

CACHE = Path(".bench")
SDIST = "llama-cpp-python==0.3.36"
SOURCE_VARIABLE = "TINYQ_LLAMA_SOURCE"
TYPES = ("q8_0", "q4_k_m", "q6_k")
TOOLS = Path(__file__).with_name("llama_tools.py")
PIECE = 1 << 24


@dataclass(frozen=True)
class Run:
    """One child process: seconds on the wall and of all cores, and peak resident memory in bytes (mapped pages included)."""

    seconds: float
    cpu: float
    peak: int


LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
found = [time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]
with os.fdopen(int(sys.argv[1]), "w") as out:
    json.dump(found, out)
"""
"""Runs a command and writes its seconds, processor seconds, ru_maxrss and exit code to a file descriptor.

Linux counts the memory of the process that called exec into ru_maxrss; this process is small, the benchmark is not.
"""


def run(*command: object) -> Run:
    """Run a command quietly and measure it; its own output is shown if it fails."""
    # As installed: modules are compiled once, and not in every run.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str((CACHE / "pycache").resolve())}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, str(writing), *(str(part) for part in command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=(writing,),
    )
    os.close(writing)
    with os.fdopen(reading) as report:
        text = report.read()
    if not text:
        raise SystemExit(done.stdout.decode(errors="replace")[-3000:])
    seconds, cpu, peak, code = json.loads(text)
    if code:
        raise SystemExit(done.stdout.decode(errors="replace")[-3000:])
    return Run(seconds, cpu, peak * (1 if sys.platform == "darwin" else 1024))


def llama_source() -> Path:
    """llama.cpp's source tree: where the variable says, or unpacked from the sdist, which is fetched once."""
    told = os.environ.get(SOURCE_VARIABLE)
    if told:
        return Path(told)
    found = list(CACHE.glob("llama_cpp_python-*/vendor/llama.cpp"))
    if not found:
        fetch = ("pip", "download", "--no-deps", "--no-binary", ":all:", SDIST, "--dest", CACHE)
        run(sys.executable, "-m", *fetch)
        with tarfile.open(next(CACHE.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(CACHE, filter="data")
        found = list(CACHE.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return found[0]


def same_tensors(ours: Path, theirs: Path) -> bool:
    """Whether both files hold the same tensors, types and bytes; the order may differ."""
    mine, other = open_gguf(ours).tensors, open_gguf(theirs).tensors
    if {n: (t.shape, t.dtype) for n, t in mine.items()} != {n: (t.shape, t.dtype) for n, t in other.items()}:
        return False
    step = PIECE // 256 * 256
    return all(
        (tensor.raw(at, min(at + step, tensor.size)) == other[name].raw(at, min(at + step, tensor.size))).all()
        for name, tensor in mine.items()
        for at in range(0, tensor.size, step)
    )


def middle_of(runs: list[Run]) -> Run:
    """The run of median time."""
    return sorted(runs, key=lambda one: one.seconds)[len(runs) // 2]


@dataclass(frozen=True)
class Row:
    """Medians for one type: seconds, seconds of all cores and peak bytes of ours, and of their two steps.

    `quantize` is a run of `tinyq quantize` on their BF16 file, `floor` one of `cat`."""

    type: str
    ours: float
    their_convert: float
    their_quantize: float
    our_cpu: float
    their_cpu: float
    our_peak: int
    their_peak: int
    same: bool
    quantize: Run
    their_quantize_cpu: float
    floor: Run

    @property
    def time_ratio(self) -> float:
        """Our seconds over theirs, both steps."""
        return self.ours / (self.their_convert + self.their_quantize)

    @property
    def peak_ratio(self) -> float:
        """Our peak over the larger of their two."""
        return self.our_peak / self.their_peak


def measure(kind: str, source: Path, llama: Path, threads: int, repeat: int) -> Row:
    """Medians over `repeat` turns: ours, their conversion, their quantization."""
    ours, middle, theirs, other = (CACHE / f"{name}.gguf" for name in ("ours", "middle", "theirs", "other"))
    once: list[Run] = []
    first: list[Run] = []
    second: list[Run] = []
    alone: list[Run] = []
    floors: list[Run] = []
    for _ in range(repeat):
        tinyq = (sys.executable, "-m", "gguf_tools", "convert", source, ours, "--type", kind)
        once.append(run(*tinyq, "--threads", threads, "--force", "--quiet"))
        first.append(run(sys.executable, TOOLS, "convert", llama, source, middle))
        second.append(run(sys.executable, TOOLS, "quantize", middle, theirs, recipe(kind).file_type, threads))
        again = (
            sys.executable,
            "-m",
            "gguf_tools",
            "quantize",
            middle,
            other,
            kind,
            "--threads",
            threads,
            "--force",
            "--quiet",
        )
        alone.append(run(*again))
        copy = 'cat "$1"/*.safetensors > /dev/null; cat "$2" > "$3"; sync "$3"'
        floors.append(run("sh", "-c", copy, "sh", source, ours, other))
    ours_s, convert_s, quantize_s = (statistics.median(one.seconds for one in runs) for runs in (once, first, second))
    peaks = [max(a.peak, b.peak) for a, b in zip(first, second, strict=True)]
    our_peak, their_peak = (int(statistics.median(found)) for found in ([one.peak for one in once], peaks))
    our_cpu = statistics.median(one.cpu for one in once)
    their_cpu = statistics.median(a.cpu + b.cpu for a, b in zip(first, second, strict=True))
    row = Row(
        *(kind, ours_s, convert_s, quantize_s, our_cpu, their_cpu, our_peak, their_peak, same_tensors(ours, theirs)),
        quantize=middle_of(alone),
        their_quantize_cpu=statistics.median(one.cpu for one in second),
        floor=middle_of(floors),
    )
    for path in (ours, middle, theirs, other):
        path.unlink()
    return row


def report(rows: list[Row], threads: int, repeat: int) -> str:
    """The table, and what it was measured on."""
    head = (
        *("type", "tinyq s", "theirs s (convert + quantize)", "ratio", "tinyq CPU s", "theirs", "ratio"),
        *("tinyq MB", "theirs", "ratio", "same bytes"),
        *("quantize alone s / CPU s", "theirs", "cat of both s / CPU s"),
    )
    body = [
        (
            row.type,
            f"{row.ours:.1f}",
            f"{row.their_convert + row.their_quantize:.1f} ({row.their_convert:.1f} + {row.their_quantize:.1f})",
            f"{row.time_ratio:.2f}",
            f"{row.our_cpu:.1f}",
            f"{row.their_cpu:.1f}",
            f"{row.our_cpu / row.their_cpu:.2f}",
            f"{row.our_peak / 1e6:.0f}",
            f"{row.their_peak / 1e6:.0f}",
            f"{row.peak_ratio:.2f}",
            "yes" if row.same else "NO",
            f"{row.quantize.seconds:.1f} / {row.quantize.cpu:.1f}",
            f"{row.their_quantize:.1f} / {row.their_quantize_cpu:.1f}",
            f"{row.floor.seconds:.1f} / {row.floor.cpu:.1f}",
        )
        for row in rows
    ]
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return (
        f"{text_table(head, body)}\n\nmedians of {repeat}, {threads} threads on {available_cores()} cores, load average {load}; "
        "peaks count mapped pages; their converter ran unchanged\nbut for the tokenizer's name, which it was told "
        "(it knows tokenizers only by hash)"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--shape", choices=SHAPES, default="dense")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    CACHE.mkdir(exist_ok=True)
    folder = CACHE / ("qwen3-0.6b" if given.shape == "dense" else "qwen3-moe")
    source, llama = write_checkpoint(folder, SHAPES[given.shape]), llama_source()
    rows = [measure(kind, source, llama, given.threads, given.repeat) for kind in given.types]
    print(report(rows, given.threads, given.repeat))
    if given.json:
        found = [asdict(row) | {"time_ratio": row.time_ratio, "peak_ratio": row.peak_ratio} for row in rows]
        given.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
