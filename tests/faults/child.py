"""Running a command as a user does, in a process of its own, with whatever disturbs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.place import Place
from tests.faults.shim import Shim, ShimState

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0
"""Seconds of processor time after which a command counts as hung, and on the clock without any; other work does not count."""
STEP = 5.0
"""Seconds between two looks at the processor time."""
GRACE = 60.0
"""Seconds in which processes that a command started must be gone after its end, on a machine that has other work."""
_LIMITED = """
import json, os, resource, sys
for number, limit in json.loads(sys.argv[1]):
    resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""
STREAMS = ("stdin", "stdout", "stderr")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is different about a run."""

    environment: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    """A command that runs the rest of its arguments."""
    limits: Mapping[int, int] = field(default_factory=dict)
    """Soft limits by their number, such as the longest file that the process may write, in bytes (RLIMIT_FSIZE)."""
    shim: Shim | None = None
    number: int = 0
    """A signal that is sent after `seconds` from when the command can handle it."""
    seconds: float = 0.0
    pause: float = 0.0
    """Seconds after which the processes that the signal stopped go on; 0 where it stops none. It is sent to all of them."""
    streams: Mapping[str, str] = field(default_factory=dict)
    """Where stdin, stdout and stderr lead by name: a path, "closed", or "unread", a pipe that nobody reads; pipes by default."""
    without: tuple[str, ...] = ()
    """Variables of the environment that it has not."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run left outside of its files."""

    code: int
    out: str
    err: str
    seconds: float
    """From when the command could handle signals."""
    hung: bool = False
    survivors: int = 0
    """Processes that it started and that are still there."""
    reached: bool = True
    """Whether the fault came to pass."""
    where: str = ""
    """The file operation at which it did."""
    steps: Sequence[tuple[int, str]] = ()
    """Kind and path of every file operation, where the shim only counted."""


class Running:
    """A command that runs."""

    def __init__(self, place: Place, arguments: list[str], setting: Setting, number: int = 0) -> None:
        """Start it; `number` tells several in one place apart."""
        self.setting, self.place = setting, place
        command = [*place.program, *arguments]
        if setting.limits:
            command = [sys.executable, "-c", _LIMITED, json.dumps(list(setting.limits.items())), *command]
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "HOME": str(place.folder / "home"),
            "TMPDIR": str(place.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            # A limit on files would leave truncated modules in the caches of everything installed.
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            # lm-evaluation-harness keeps the data of tasks there.
            "HF_DATASETS_CACHE": str(place.folder.parent / "datasets"),
            **setting.environment,
        }
        self.state: ShimState | None = None
        if setting.shim:
            self.state = ShimState(beside(place, f"shim-{number}"))
            environment |= setting.shim.environment(self.state)
        for name in setting.without:
            environment.pop(name, None)
        closed = [f"{n}>&-" for n, name in enumerate(STREAMS) if setting.streams.get(name) == "closed"]
        wrapper = ("sh", "-c", f'exec "$@" {" ".join(closed)}', "sh") if closed else ()
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **{name: _opened(where) for name, where in setting.streams.items() if where != "closed"},
        }
        try:
            self.process = subprocess.Popen(
                [*setting.wrapper, *wrapper, *command],
                cwd=place.folder / "home",
                env=environment,
                start_new_session=True,
                stdin=streams["stdin"],
                stdout=streams["stdout"],
                stderr=streams["stderr"],
            )
        finally:
            for descriptor in streams.values():
                if descriptor >= 0:
                    os.close(descriptor)

    def finish(self) -> Ended:
        """Disturb it as the setting says, wait for its end, and look what it left."""
        hung = False
        wait_until(self._handles_signals)
        begun = time.monotonic()
        reached = not self.setting.number or self._signalled()
        used, since = 0.0, begun
        while True:
            try:
                out, err = self.process.communicate(timeout=STEP)
                break
            except subprocess.TimeoutExpired:
                before, used = used, self._processor_time()
                since = time.monotonic() if used > before else since
                if used > LIMIT or time.monotonic() - since > LIMIT:
                    hung = True
                    os.killpg(self.process.pid, signal.SIGKILL)
        seconds = time.monotonic() - begun
        wait_until(lambda: not self.survivors(), GRACE)
        survivors = self.survivors()
        if survivors:
            os.killpg(self.process.pid, signal.SIGKILL)
        where, steps = "", []
        if self.state:
            reached, where = self.state.read()
            steps = self.state.steps()
        return Ended(
            code=self.process.returncode,
            out=(out or b"").decode("utf-8", "replace"),
            err=(err or b"").decode("utf-8", "replace"),
            seconds=seconds,
            hung=hung,
            survivors=survivors,
            reached=reached,
            where=where.replace(f"{self.place.folder}/", ""),
            steps=[(kind, path.removeprefix(f"{self.place.folder}/")) for kind, path in steps],
        )

    def _signalled(self) -> bool:
        """Send the setting's signal when its time has come; False where the command ended before."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self.setting.seconds)
            return False
        if self.setting.pause:
            os.killpg(self.process.pid, self.setting.number)
            time.sleep(self.setting.pause)
            os.killpg(self.process.pid, signal.SIGCONT)
        else:
            self.process.send_signal(self.setting.number)
        return True

    def survivors(self) -> int:
        """How many processes of its session there are, itself left aside."""
        return sum(pid != self.process.pid and fields[0] not in "ZX" for pid, fields in self._session())

    def _processor_time(self) -> float:
        """Seconds of processor time that its session has used, with those of processes that have ended."""
        ticks = sum(sum(map(int, fields[11:15])) for _, fields in self._session())
        return ticks / os.sysconf("SC_CLK_TCK")

    def _session(self) -> Iterator[tuple[int, list[str]]]:
        """The processes of its session: their ids, and their fields."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = _fields(stat)
                if int(fields[3]) == self.process.pid:
                    yield int(stat.parent.name), fields

    def stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP), or has ended."""
        try:
            return _fields(Path(f"/proc/{self.process.pid}/stat"))[0] in "TtZX"
        except OSError:
            return True

    def _handles_signals(self) -> bool:
        """Whether tinyq's own handler of SIGTERM is there, or the process has ended."""
        if self.process.poll() is not None:
            return True
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return True
        caught = next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith("SigCgt"))
        return bool(caught >> (signal.SIGTERM - 1) & 1)


def _fields(stat: Path) -> list[str]:
    """The fields of a /proc/PID/stat from the state on."""
    return stat.read_text("utf-8", "replace").rpartition(")")[2].split()


def _opened(where: str) -> int:
    """A descriptor of a path for reading and writing, or of a pipe whose other end is closed."""
    if where != "unread":
        return os.open(where, os.O_RDWR)
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def beside(place: Place, name: str) -> Path:
    """A file of the engine's own, outside of the place so that it is no step of the command's."""
    return place.folder.with_name(f"{place.folder.name}.{name}")


def wait_until(condition: Callable[[], bool], seconds: float = LIMIT) -> None:
    """Wait for a condition, `seconds` at most."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def run(place: Place, arguments: list[str], setting: Setting | None = None) -> Ended:
    """Run a command to its end."""
    return Running(place, arguments, setting or Setting()).finish()
