"""The long campaign: a process for each target, several at a time, its figures added up in a folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from random import SystemRandom
from threading import Lock, get_ident

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


class Server:
    """A process that has imported all targets, and runs one at a time; it is started by the first."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, place: Path, **request: object) -> tuple[int, float]:
        """Run a target in its folder; the exit code, and the seconds of computing."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "fuzzing.worker"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"folder": str(place), **request}), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["seconds"]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()


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
            server = servers.get()
            try:
                wanted = target.executions if executions is None else executions
                return run(target, folder, server, wanted, min(limits, default=None))
            finally:
                servers.put(server)

    servers: SimpleQueue[Server] = SimpleQueue()
    with ExitStack() as opened, ThreadPoolExecutor(jobs) as pool:
        for _ in range(jobs):
            servers.put(opened.enter_context(closing(Server())))
        waiting = {pool.submit(one, target): target for target in ordered}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def run(target: Target, folder: Path, server: Server, executions: int, seconds: float | None = None) -> bool:
    """Run a target, within `seconds` if given, and note the figures; whether its process ended as it should."""
    place = folder / target.name
    place.mkdir(parents=True, exist_ok=True)
    end = None if seconds is None else time.monotonic() + seconds
    left = executions
    for _ in range(MOST_RESTARTS):
        remaining = None if end is None else int(end - time.monotonic())
        if remaining is not None and remaining < 1:
            return True
        done, whole = _process(target, place, server, left, remaining)
        note(place, done)
        left -= done.executions
        if whole or left <= 0:
            return whole
    return False


def _process(target: Target, place: Path, server: Server, executions: int, seconds: int | None) -> tuple[Run, bool]:
    """Run the target in a process of its own; its figures, and whether it ended as it should."""
    (place / "accepted").unlink(missing_ok=True)
    seed = SystemRandom().randrange(1, 1 << 31)
    code, spent = server.run(place, name=target.name, runs=executions, seed=seed, seconds=seconds)
    text = (place / "log").read_text("utf-8", "replace")
    told = (place / "accepted").read_text("ascii") if (place / "accepted").exists() else "0"
    executed = _EXECUTED.search(text)
    done = Run(
        executions=int(executed[1]) if executed else 0,
        accepted=int(told),
        seconds=round(spent, 1),
        edges=max(map(int, _EDGES.findall(text)), default=0),
    )
    return done, code == 0


def note(place: Path, done: Run) -> None:
    """Add a run to those that are noted in a target's folder."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "runs.jsonl").open("a", encoding="ascii") as stream:
        stream.write(json.dumps(asdict(done)) + "\n")


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
