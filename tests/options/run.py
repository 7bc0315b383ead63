"""Running a command line in a fork of this process, and what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.faults.materials import Materials
from tests.faults.place import Place, Snapshot
from tests.options.attack import Attack

SECONDS = 120.0
"""After this long a command counts as hung."""
MEMORY = 16 << 30
"""Most bytes of address space of a command."""
RESIDENT = 4 << 30
"""Most bytes of memory that a command may use on inputs as tiny as these."""
CODES = (0, 1, 2, 3)
LONGEST = 2100
"""Most characters of an error: the line on the terminal, and `tinyq: `."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TO_DO = re.compile(r"[;?]|expected")
_UNDO = ".tinyq-undo-"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code (None where it was killed after `SECONDS`), what it printed, and what it used."""

    code: int | None
    out: str
    err: str
    seconds: float
    memory: int


class Bench:
    """A folder to run command lines in, one after another."""

    def __init__(self, folder: Path) -> None:
        """Inputs are made in `folder` when they are first needed."""
        self._folder, self._count = folder, 0
        (folder / "materials").mkdir()
        self._materials = Materials(folder / "materials")

    def run(self, attack: Attack) -> tuple[Ended, list[str]]:
        """Run a command line in a place of its own; how it ended, and what is wrong with that."""
        self._count += 1
        place = Place.made(self._folder / f"place-{self._count}", attack.scenario, self._materials)
        try:
            furnish(place)
            arguments = [filled(one, place) for one in attack.arguments]
            before = Snapshot.of(place, attack.scenario)
            ended = run(place, arguments)
            return ended, list(complaints(attack, before, Snapshot.of(place, attack.scenario), ended))
        finally:
            place.remove()


def furnish(place: Place) -> None:
    """Make what hostile paths name beside the scenario's inputs."""
    folder = place.inputs
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    os.mkfifo(folder / "fifo")
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    if not (folder / "text.txt").exists():
        (folder / "text.txt").write_text("The cat went on, and the end was near.\n" * 9, "utf-8")


def filled(argument: str, place: Place) -> str:
    """An argument with the place's folders."""
    return argument.replace("{in}", str(place.inputs)).replace("{out}", str(place.outputs))


def run(place: Place, arguments: list[str]) -> Ended:
    """Run `tinyq` with these arguments in a forked process, in the place's home."""
    out, err = place.folder / "stdout", place.folder / "stderr"
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(place, out, err, arguments)
    code, memory = _waited(pid, begun + SECONDS)
    return Ended(
        code=code,
        out=out.read_bytes().decode("utf-8", "surrogateescape"),
        err=err.read_bytes().decode("utf-8", "surrogateescape"),
        seconds=time.monotonic() - begun,
        memory=memory,
    )


def _waited(pid: int, end: float) -> tuple[int | None, int]:
    """The exit code and the peak memory in bytes of a child, which is killed with its own children at `end`."""
    pause = 0.001
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return None, os.wait4(pid, 0)[2].ru_maxrss * 1024
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def _become(place: Place, out: Path, err: Path, arguments: list[str]) -> NoReturn:
    """In the child: be the command, and end."""
    code = 111
    try:
        os.setsid()
        os.chdir(place.folder / "home")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.environ |= {
            "HOME": str(place.folder / "home"),
            "TMPDIR": str(place.folder / "tmp"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_HUB_OFFLINE": "1",
        }
        tempfile.tempdir = None
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        from gguf_tools.cli import main

        main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def complaints(attack: Attack, before: Snapshot, after: Snapshot, ended: Ended) -> Iterator[str]:
    """What is wrong with how a command ended, in words."""
    if ended.code is None:
        yield f"did not end in {SECONDS:.0f} s"
    elif ended.code not in CODES:
        yield f"exit code {ended.code}: {ended.err[-600:]!r}"
    if ended.memory > RESIDENT:
        yield f"{ended.memory / 1e9:.1f} GB of memory"
    yield from _of_streams(attack, ended)
    for name in sorted({*before.entries, *after.entries}):
        old, new = before.entries.get(name), after.entries.get(name)
        if old == new or name.removeprefix("in/") in attack.scenario.changes or _UNDO in name:
            continue
        if old is not None:
            yield f"{name} was changed"
        elif ended.code == 2:
            yield f"{name} was left behind: {ended.err[:300]!r}"
        elif name.startswith("tmp/"):
            yield f"{name} was left in the temporary folder"


def _of_streams(attack: Attack, ended: Ended) -> Iterator[str]:
    """An error is one line that says what to do, and nothing that is printed has control characters."""
    if "Traceback" in ended.err + ended.out:
        yield f"a traceback: {ended.err[-1000:]!r}"
    skipped = attack.scenario.progress or ("\0",)
    lines = [line for line in ended.err.splitlines() if line and not line.startswith(skipped)]
    if ended.code == 0 and lines:
        yield f"ends well and says: {ended.err[:600]!r}"
    elif ended.code and (len(lines) != 1 or not lines[0].startswith("tinyq: ")):
        yield f"stderr has {len(lines)} lines: {ended.err[:600]!r}"
    elif ended.code == 2 and not _TO_DO.search(lines[0]):
        yield f"does not say what to do: {lines[0][:400]!r}"
    if any(len(line) > LONGEST for line in lines):
        yield f"a line of {max(map(len, lines))} characters"
    for text in (ended.out, ended.err):
        if found := _CONTROL.search(text):
            yield f"prints a control character: {text[max(found.start() - 100, 0) : found.end() + 100]!r}"
