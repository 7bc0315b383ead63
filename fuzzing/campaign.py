"""The long campaign: a process for each target in turn, its figures added up in a folder."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import SystemRandom

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


def run(target: Target, folder: Path, executions: int, seconds: int | None = None) -> bool:
    """Run a target, within `seconds` if given, and note the figures; whether its process ended as it should."""
    place = folder / target.name
    place.mkdir(parents=True, exist_ok=True)
    left = executions
    for _ in range(MOST_RESTARTS):
        done, whole = _process(target, place, left, seconds)
        with (place / "runs.jsonl").open("a", encoding="ascii") as stream:
            stream.write(json.dumps(asdict(done)) + "\n")
        left -= done.executions
        if whole or left <= 0 or seconds is not None:
            return whole
    return False


def _process(target: Target, place: Path, executions: int, seconds: int | None) -> tuple[Run, bool]:
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
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (place / "log").open("wb") as log:
        ended = subprocess.run([*command, *([str(seconds)] if seconds else [])], stdout=log, stderr=log, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = (place / "log").read_text("utf-8", "replace")
    told = (place / "accepted").read_text("ascii") if (place / "accepted").exists() else "0"
    executed = _EXECUTED.search(text)
    done = Run(
        executions=int(executed[1]) if executed else 0,
        accepted=int(told),
        seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        edges=max(map(int, _EDGES.findall(text)), default=0),
    )
    return done, ended.returncode == 0


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
