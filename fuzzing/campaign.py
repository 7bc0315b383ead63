"""The long campaign: a process for each target, several at a time, its figures added up in a folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from random import SystemRandom
from threading import Lock, get_ident

from fuzzing.registry import module_of
from fuzzing.target import Finding, Target, attempt, limits, prepared

MOST_RESTARTS = 5
"""After crashes of the process, which are findings."""
_EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
_EDGES = re.compile(r"cov: (\d+)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process did: executions, those accepted, seconds of computing, and edges of tinyq's code that were reached."""

    executions: int
    accepted: int
    seconds: float
    edges: int


class Shares:
    """Divides the time of `jobs` threads, until `seconds` from now, among `targets` that start one after another.

    A target gets an equal share of what those before it did not use.
    """

    def __init__(self, targets: int, jobs: int, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds
        self._jobs = jobs
        self._waiting = targets
        self._busy: dict[int, float] = {}
        self._lock = Lock()

    @contextmanager
    def take(self) -> Iterator[float]:
        """The seconds of the target that starts now in this thread, which is busy meanwhile; 0 where no time is left."""
        with self._lock:
            now = self._now()
            idle = self._jobs - len(self._busy)
            left = sum(max(0.0, self._end - max(now, until)) for until in (*self._busy.values(), *[now] * idle))
            share = max(0.0, min(left / self._waiting, self._end - now))
            self._waiting -= 1
            self._busy[get_ident()] = now + share
        try:
            yield share
        finally:
            with self._lock:
                del self._busy[get_ident()]


def run_all(
    targets: Sequence[Target],
    folder: Path,
    *,
    jobs: int,
    executions: int | None,
    seconds: float | None,
    total: float | None,
) -> Iterator[tuple[Target, bool]]:
    """Run the targets, `jobs` at a time, and yield each when it is done, with whether its process ended as it should.

    `executions` replaces each target's own number; a target ends after `seconds`, all of them after `total` seconds. Those with
    accepted inputs that go deep start first, as they take longest.
    """
    ordered = sorted(targets, key=lambda target: not target.deep)
    shares = Shares(len(ordered), jobs, total) if total is not None else None

    def one(target: Target) -> bool:
        with shares.take() if shares else nullcontext() as share:
            limits = [limit for limit in (seconds, share) if limit is not None]
            return run(
                target, folder, target.executions if executions is None else executions, min(limits, default=None)
            )

    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, target): target for target in ordered}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def run(target: Target, folder: Path, executions: int, seconds: float | None = None) -> bool:
    """Run a target, within `seconds` if given, and note the figures; whether its process ended as it should."""
    place = folder / target.name
    place.mkdir(parents=True, exist_ok=True)
    end = None if seconds is None else time.monotonic() + seconds
    left = executions
    for _ in range(MOST_RESTARTS):
        remaining = None if end is None else int(end - time.monotonic())
        if remaining is not None and remaining < 1:
            return True
        done, whole = _process(target, place, left, remaining)
        with (place / "runs.jsonl").open("a", encoding="ascii") as stream:
            stream.write(json.dumps(asdict(done)) + "\n")
        left -= done.executions
        if whole or left <= 0:
            return whole
    return False


def _process(target: Target, place: Path, executions: int, seconds: int | None) -> tuple[Run, bool]:
    """Run the target in a process of its own; its figures, and whether it ended as it should."""
    seed = SystemRandom().randrange(1, 1 << 31)
    command = [
        sys.executable,
        "-m",
        "fuzzing.worker",
        module_of(target),
        target.name,
        str(executions),
        str(seed),
        str(place),
    ]
    (place / "accepted").unlink(missing_ok=True)
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*command, *([str(seconds)] if seconds else [])], stdout=log, stderr=log)
        # wait4 tells the computing time of this process alone, whatever else ends meanwhile.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = (place / "log").read_text("utf-8", "replace")
    told = (place / "accepted").read_text("ascii") if (place / "accepted").exists() else "0"
    executed = _EXECUTED.search(text)
    done = Run(
        executions=int(executed[1]) if executed else 0,
        accepted=int(told),
        seconds=round(used.ru_utime + used.ru_stime, 1),
        edges=max(map(int, _EDGES.findall(text)), default=0),
    )
    return done, process.returncode == 0


def runs(name: str, folder: Path) -> list[Run]:
    """The runs of a target that are noted in the folder."""
    path = folder / name / "runs.jsonl"
    return [Run(**json.loads(line)) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def findings(name: str, folder: Path) -> list[str]:
    """What is open: the place of each finding, and the names of inputs that ended the process."""
    place = folder / name / "findings"
    if not place.is_dir():
        return []
    told = [path.read_text("utf-8").partition("\n")[0] for path in sorted(place.glob("*.txt"))]
    return [*told, *(path.name for path in sorted(place.iterdir()) if path.suffix not in (".txt", ".input"))]


def replay(target: Target, folder: Path) -> None:
    """Try the findings again, in this process; those that were mended are removed."""
    found = list((folder / target.name / "findings").glob("*.input"))
    if not found:
        return
    with prepared(target) as ready, limits():
        for path in found:
            if not isinstance(attempt(ready.read, path.read_bytes()), Finding):
                path.unlink()
                path.with_suffix(".txt").unlink(missing_ok=True)


def reached(name: str, folder: Path) -> list[bytes]:
    """The inputs of a target that reached what none did before."""
    corpus = folder / name / "corpus"
    return (
        [path.read_bytes() for path in corpus.iterdir() if not path.name.startswith("seed-")] if corpus.is_dir() else []
    )
