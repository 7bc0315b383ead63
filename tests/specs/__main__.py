"""python -m tests.specs [COUNT] [FIRST]: checks many random specs, and prints those that are wrong and a summary."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.specs.check import Checker

count, first = (int(sys.argv[n]) if len(sys.argv) > n else default for n, default in ((1, 1000), (2, 0)))
targets: Counter[str] = Counter()
wrong = 0
with tempfile.TemporaryDirectory() as name, Checker(Path(name)) as checker:
    for found in map(checker.seed, range(first, first + count)):
        targets[found.target or "refused"] += 1
        if found.wrong or "-v" in sys.argv:
            print(found, flush=True)
        wrong += bool(found.wrong)
print(f"{count} specs: {wrong} wrong; " + ", ".join(f"{name} {times}" for name, times in targets.most_common()))
sys.exit(bool(wrong))
