"""One target guided by coverage, in a process of its own: `python -m fuzzing.worker MODULE TARGET RUNS SEED FOLDER [SECONDS]`.

atheris mutates, and keeps inputs that reach what none did before. Findings are written to FOLDER/findings and do not end the run,
a crash of the process does; FOLDER/corpus keeps the inputs, and FOLDER/accepted the number of inputs that were accepted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random

import atheris

from fuzzing import inputs
from fuzzing.mutate import mutate_bytes
from fuzzing.target import PACKAGES, Finding, Prepared, Target, attempt, limits, prepared

TOLD_EVERY = 1 << 8
SEEDED = 0.3
"""The share of inputs that are made from a seed where accepted ones go deep: most of the corpus is what was refused."""


class Reading:
    """Reads inputs, counts those that were accepted, and writes findings into a folder, the smallest input of each."""

    def __init__(self, ready: Prepared, folder: Path) -> None:
        self.ready = ready
        self.folder = folder
        self.findings = folder / "findings"
        self.done = self.accepted = 0
        self.sizes: dict[str, int] = {}

    def one(self, data: bytes) -> None:
        """Read an input."""
        outcome = attempt(self.ready.read, data)
        self.done += 1
        if isinstance(outcome, Finding):
            self._found(outcome, data)
        elif outcome:
            self.accepted += 1
        if self.done % TOLD_EVERY == 0:
            (self.folder / "accepted").write_text(f"{self.accepted}", "ascii")

    def _found(self, finding: Finding, data: bytes) -> None:
        if len(data) < self.sizes.get(finding.key, 1 << 30):
            self.sizes[finding.key] = len(data)
            stem = self.findings / sha256(finding.key.encode()).hexdigest()[:12]
            stem.with_suffix(".input").write_bytes(data)
            stem.with_suffix(".txt").write_text(f"{finding.key}\n\n{finding.text}", "utf-8", "backslashreplace")

    def replay(self) -> None:
        """Try the findings of earlier runs; those that were mended go."""
        for path in self.findings.glob("*.input"):
            data = path.read_bytes()
            path.unlink()
            path.with_suffix(".txt").unlink(missing_ok=True)
            self.one(data)


def changer(target: Target, ready: Prepared) -> Callable[[bytes, int, int], bytes]:
    """The mutator of a target, for atheris; a tenth of the changes is libFuzzer's own, of bytes."""

    def change(data: bytes, most: int, number: int) -> bytes:
        rng = Random(number)
        if target.mutate is None or rng.random() < 0.1:
            plain = mutate_bytes(data, rng, target.words) if target.words and rng.random() < 0.5 else data
            return bytes(atheris.Mutate(plain[:most], most))[:most]
        if target.deep and rng.random() < SEEDED:
            data = rng.choice(ready.seeds)
        changed = target.mutate(data, rng)
        return changed if len(changed) <= most else data

    return change


def main(module: str, name: str, runs: str, seed: str, folder: Path, seconds: str | None = None) -> None:
    """Run the target."""
    with atheris.instrument_imports(include=list(PACKAGES), enable_loader_override=False):
        target = next(one for one in importlib.import_module(module).TARGETS if one.name == name)
    corpus, findings = folder / "corpus", folder / "findings"
    for place in (corpus, findings):
        place.mkdir(parents=True, exist_ok=True)
    with prepared(target) as ready:
        for number, data in enumerate((*ready.seeds, *inputs.kept(name))):
            (corpus / f"seed-{number:04d}").write_bytes(data)
        reading = Reading(ready, folder)
        most = max(target.longest, *map(len, ready.seeds))
        options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={most}", "-timeout=300", "-rss_limit_mb=0"]
        options += [
            "-print_final_stats=1",
            "-report_slow_units=100000",
            "-len_control=0",
            "-reload=0",
            f"-artifact_prefix={findings}/",
        ]
        options += [f"-max_total_time={seconds}"] if seconds else []
        with limits():
            reading.replay()
            atheris.Setup([sys.argv[0], *options, str(corpus)], reading.one, custom_mutator=changer(target, ready))
            atheris.Fuzz()


if __name__ == "__main__":
    module, name, runs, seed, folder, *limit = sys.argv[1:]
    main(module, name, runs, seed, Path(folder), limit[0] if limit else None)
