"""`tinyq publish` of a bundled model to several types at once, against one publication for each: seconds and processor time.

Each is the whole command in a process of its own, everything measured (`--suite all`), in turns on the same machine. The goal for
five types is at most 1.6 times the slowest of the five alone.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed import Run, middle_of, run
from gguf_tools.bundled import MODELS, bundled_model
from gguf_tools.tables import text_table

TYPES = "q8_0,q6_k,q5_k_m,q4_k_m,q3_k_m"


def published(source: Path, folder: Path, types: str) -> Run:
    """One publication of these types, which is removed again."""
    out = folder / "out"
    found = run(sys.executable, "-m", "gguf_tools", "publish", source, "-o", out, "--types", types, "-q")
    shutil.rmtree(out)
    return found


def measure(source: Path, types: Sequence[str], repeat: int) -> dict[str, Run]:
    """The median run of all types together, by their names with commas, and of each alone."""
    kinds = [",".join(types), *types]
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(prefix="tinyq-bench-") as folder:
        published(source, Path(folder), types[0])  # modules are compiled, files are in the page cache
        for _ in range(repeat):
            for kind in kinds:
                runs[kind].append(published(source, Path(folder), kind))
    return {kind: middle_of(found) for kind, found in runs.items()}


def report(found: dict[str, Run]) -> str:
    """A table, and the ratio of all types together to the slowest alone."""
    together, *alone = found
    rows = [[kind, f"{one.seconds:.1f}", f"{one.cpu:.1f}"] for kind, one in found.items()]
    slowest = max(alone, key=lambda kind: found[kind].seconds)
    dearest = max(alone, key=lambda kind: found[kind].cpu)
    ratio = found[together].seconds / found[slowest].seconds
    processor = found[together].cpu / found[dearest].cpu
    told = (
        f"together / slowest alone: {ratio:.2f} on the wall ({slowest}), {processor:.2f} of processor time ({dearest})"
    )
    return f"{text_table(['types', 'seconds', 'processor seconds'], rows)}\n\n{told}"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks publish", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="dense")
    parser.add_argument("--types", default=TYPES, help="with commas")
    parser.add_argument("--repeat", type=int, default=3, help="turns, of which the median is taken")
    asked = parser.parse_args(arguments)
    print(report(measure(bundled_model(asked.model), asked.types.split(","), asked.repeat)))


if __name__ == "__main__":
    main()
