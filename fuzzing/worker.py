"""Targets guided by coverage: `python -m fuzzing.worker` runs the targets that it is told on stdin, each in a forked process.

atheris mutates, and keeps inputs that reach what none did before. Findings are written to FOLDER/findings and do not end the run,
a crash of the process does; FOLDER/corpus keeps the inputs, and FOLDER/accepted the number of inputs that were accepted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
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


def serve() -> None:
    """Import all targets once, with what they read instrumented; run each request in a fork, and answer when it has ended.

    A request is a line of JSON with the arguments of `fuzz`, an answer one with the exit `code` and the `seconds` of computing.
    """
    # atheris names each module that it instruments on stderr.
    quiet = contextlib.redirect_stderr(io.StringIO())
    with quiet, atheris.instrument_imports(include=list(PACKAGES), enable_loader_override=False):
        from fuzzing.registry import all_targets

        targets = {target.name: target for target in all_targets()}
    for line in sys.stdin:
        request = json.loads(line)
        target, folder = targets[request.pop("name")], Path(request.pop("folder"))
        child = os.fork()
        if child == 0:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            fuzz(target, folder, **request)
            os._exit(0)
        # wait4 tells the computing time of this child alone.
        _, status, used = os.wait4(child, 0)
        shutil.rmtree(scratch(child), ignore_errors=True)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": used.ru_utime + used.ru_stime}
        print(json.dumps(answer), flush=True)


def scratch(process: int) -> Path:
    """The folder, in memory where the system has one, of the files that the readers of a process read."""
    memory = Path("/dev/shm")
    return (memory if memory.is_dir() else Path(tempfile.gettempdir())) / f"tinyq-fuzzing-{process}"


def fuzz(target: Target, folder: Path, runs: int, seed: int, seconds: int | None = None) -> None:
    """Run the target; ends the process."""
    corpus, findings = folder / "corpus", folder / "findings"
    for place in (corpus, findings):
        place.mkdir(parents=True, exist_ok=True)
    # atheris ends the process without leaving any context: the parent removes the folder.
    scratch(os.getpid()).mkdir()
    with prepared(target, scratch(os.getpid())) as ready:
        for number, data in enumerate((*ready.seeds, *inputs.kept(target.name))):
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
    serve()
