"""Streams, folders, names, settings, clocks, rights and file systems that are not what they are on the author's machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.faults import shim
from tests.faults.at_steps import WRONG, shimmed
from tests.faults.bench import Bench, Change, Try
from tests.faults.child import Setting
from tests.faults.fault import Fault, some
from tests.faults.on_paths import REFUSED, UNSHARE, no_mounts
from tests.faults.permissions import AS_ANYBODY, no_rights
from tests.faults.place import Place
from tests.faults.scenario import Scenario
from tests.faults.shim import LACK

_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
_GONE = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
_OTHER_DISK = 'mount -t tmpfs none "$1" && shift && exec "$@"'
_READ_ONLY_HOME = 'mount --bind . . && mount -o remount,bind,ro . && exec "$@"'
YEAR = 3600 * 24 * 365
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which the surroundings differ."""

    label: str
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    streams: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    below: str = ""
    """The folder, below the place's usual one, that the place is in."""
    prepare: Change | None = None
    may_fail: bool = False
    refused: str = ""
    """What the line says with which the command ends, where it does nothing."""
    prints: bool = True


class Different(Fault):
    """One of several ways, drawn by a seed."""

    ways: Sequence[Way] = ()
    cheap = False

    def excused(self, scenario: Scenario) -> tuple[str, ...]:
        """Entries that are not compared."""
        return ()

    def may_fail(self, way: Way, scenario: Scenario) -> bool:
        """Whether an error counts as survived, too; of lm-eval all do, since what runs there is not tinyq's."""
        return way.may_fail or scenario.command == "lm-eval"

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return [
            Try(
                label=way.label,
                codes=self._codes(way, scenario),
                says=(way.refused,) if way.refused else (),
                setting=partial(self._setting, bench, way),
                prepare=way.prepare,
                below=way.below,
                prints=way.prints,
                excused=self.excused(scenario),
            )
            for way in some(self.ways, most, self.name, scenario.name)
        ]

    def _codes(self, way: Way, scenario: Scenario) -> tuple[int, ...]:
        if way.refused:
            return REFUSED
        return (*WRONG, scenario.code) if self.may_fail(way, scenario) else (scenario.code,)

    def _setting(self, bench: Bench, way: Way, place: Place) -> Setting:
        values = {name: value.replace("{place}", str(place.folder)) for name, value in way.environment.items()}
        wrapper = tuple(part.replace("{place}", str(place.folder)) for part in way.wrapper)
        if "FAULT_CLOCK" in values:
            values["LD_PRELOAD"] = str(bench.library)
        return Setting(environment=values, without=way.without, streams=way.streams, wrapper=wrapper)


class OtherStreams(Different):
    name = "other streams"
    about = "stdin or stderr is closed, stderr is full, or nobody reads stdout (`| head`) or stderr"
    ways = (
        Way(label="stdin closed", streams={"stdin": "closed"}),
        Way(label="stderr closed", streams={"stderr": "closed"}),
        Way(label="stderr full", streams={"stderr": "/dev/full"}),
        Way(label="stderr unread", streams={"stderr": "unread"}),
        Way(label="stdout unread", streams={"stdout": "unread"}, prints=False),
        Way(label="all closed", streams=dict.fromkeys(("stdin", "stdout", "stderr"), "closed"), prints=False),
        Way(label="both unread", streams=dict.fromkeys(("stdout", "stderr"), "unread"), prints=False),
    )


class OddFolders(Different):
    name = "home and other folders"
    about = (
        "HOME is missing, empty, a file or read-only, the caches of Hugging Face and others are no folders, the current folder "
        "was removed, or TMPDIR is on another disk than the outputs"
    )
    ways = (
        Way(label="not set", without=("HOME",)),
        Way(label="empty", environment={"HOME": ""}),
        Way(label="missing", environment={"HOME": "{place}/none"}),
        Way(label="a file", environment={"HOME": "/etc/hostname"}),
        Way(label="read-only", wrapper=(*UNSHARE, "sh", "-c", _READ_ONLY_HOME, "sh")),
        Way(
            label="no caches",
            environment=dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "/dev/null/x"),
        ),
        Way(label="no current folder", wrapper=("sh", "-c", _GONE, "sh"), refused="the current folder was removed"),
        Way(label="TMPDIR on a disk of its own", wrapper=(*UNSHARE, "sh", "-c", _OTHER_DISK, "sh", "{place}/tmp")),
    )

    def why_not(self) -> str:
        return no_mounts()


class OddSettings(Different):
    name = "settings and dates"
    about = (
        "variables of Python, terminals and threads have unusual or senseless values, the clock stands in 1975 or 2060, or the "
        "inputs are dated before 1970 or far ahead"
    )
    ways = (
        Way(label="optimized", environment={"PYTHONOPTIMIZE": "2"}),
        Way(label="warnings are errors", environment={"PYTHONWARNINGS": "error"}),
        Way(label="development mode", environment={"PYTHONDEVMODE": "1"}),
        Way(label="safe path", environment={"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"}),
        Way(label="hash seed", environment={"PYTHONHASHSEED": "1", "PYTHONMALLOC": "debug"}),
        Way(
            label="threads",
            environment={"OMP_NUM_THREADS": "100", "MKL_NUM_THREADS": "-1", "OPENBLAS_NUM_THREADS": "0"},
        ),
        Way(label="no columns", environment={"COLUMNS": "0", "LINES": "0", "NO_COLOR": "1"}, prints=False),
        Way(
            label="less than no columns", environment={"COLUMNS": "-1", "LINES": "-1", "FORCE_COLOR": "1"}, prints=False
        ),
        Way(label="one column", environment={"COLUMNS": "1", "TERM": "dumb"}, prints=False),
        Way(label="columns without end", environment={"COLUMNS": "100000", "LINES": "x"}, prints=False),
        Way(label="no terminal", environment={"TERM": "", "COLUMNS": "x"}, without=("LANG", "PATH")),
        Way(label="ASCII", environment=_ASCII, prints=False),
        Way(label="no such locale", environment={"LC_ALL": "xx_YY.latin1", "PYTHONIOENCODING": "latin1"}, prints=False),
        Way(label="date of sources", environment={"SOURCE_DATE_EPOCH": "x", "TZ": "Nowhere/None"}),
        Way(label="1975", environment={"FAULT_CLOCK": str(-51 * YEAR)}),
        Way(label="2060", environment={"FAULT_CLOCK": str(34 * YEAR)}),
        Way(label="inputs of 1969", prepare=lambda place: _dated(place, -1000)),
        Way(label="inputs of 2242", prepare=lambda place: _dated(place, 1 << 33)),
    )

    def why_not(self) -> str:
        return shim.why_not()


class OddNames(Different):
    name = "names of folders"
    about = (
        "inputs and outputs lie in a folder whose name has spaces, escapes, a newline or no encoding, or is very long"
    )
    ways = (
        Way(label="letters", below="Größe 日本 🙂", prints=False),
        Way(label="letters, in ASCII", below="Größe 日本 🙂", environment=_ASCII, prints=False),
        Way(label="signs", below="-a %s{}{0}$(x)`y`'\"\\*?[a]&|;<b>#~", prints=False),
        Way(label="newline", below="a\nb\x1b[31m\r\tc", prints=False),
        Way(label="bytes", below=os.fsdecode(b"a\xff\xfeb"), prints=False),
        Way(label="long name", below="n" * 255, prints=False),
        Way(label="long path", below="/".join(["p" * 200] * 18), prints=False),
        Way(label="longest path", below="/".join(["p" * 250] * 16)[:3990], may_fail=True, prints=False),
    )

    def excused(self, scenario: Scenario) -> tuple[str, ...]:
        # These have the path in them, with escapes of their own.
        return tuple(f"out/{name}" for name in scenario.outputs if name.endswith((".csv", ".md", ".html")))

    def may_fail(self, way: Way, scenario: Scenario) -> bool:
        # SQLite takes paths of up to 512 bytes, and SQLAlchemy none with a question mark.
        return super().may_fail(way, scenario) or "study.db" in scenario.inputs

    def fits(self, scenario: Scenario) -> bool:
        # An input outside of the place is recorded by its path from the output, which is another in another folder.
        return bool(scenario.inputs)


def _dated(place: Place, seconds: int) -> None:
    for path in place.inputs.rglob("*"):
        os.utime(path, (seconds, seconds))


class Umask(Different):
    name = "umask"
    about = "a umask of 077, 0377 or 0777, or a TMPDIR and a home that may not be written, which holds for root too"

    ways = (
        Way(label="umask 077", wrapper=(*AS_ANYBODY, "sh", "-c", 'umask 077; exec "$@"', "sh")),
        Way(label="umask 0777", wrapper=(*AS_ANYBODY, "sh", "-c", 'umask 0777; exec "$@"', "sh"), may_fail=True),
        Way(label="umask 0377", wrapper=(*AS_ANYBODY, "sh", "-c", 'umask 0377; exec "$@"', "sh"), may_fail=True),
        Way(
            label="TMPDIR and home may not be written",
            wrapper=(*AS_ANYBODY, "sh", "-c", 'chmod 555 "$TMPDIR" "$HOME"; exec "$@"', "sh"),
        ),
    )

    def why_not(self) -> str:
        return no_rights()


class SimpleDisk(Fault):
    name = "simple file system"
    about = (
        "no locks, links, modes or dates can be set, no folder flushed, no range copied or reserved: as on FAT, or some of NFS "
        "and FUSE"
    )
    cheap = False

    def why_not(self) -> str:
        return shim.why_not()

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        codes = (*WRONG, scenario.code) if "study.db" in scenario.inputs else (scenario.code,)
        return [Try(label="", codes=codes, setting=partial(self._setting, bench))]

    def _setting(self, bench: Bench, place: Place) -> Setting:
        return shimmed(bench, place, "", LACK, 1, "full", errno.EPERM)


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (OtherStreams(), OddFolders(), OddSettings(), OddNames(), Umask(), SimpleDisk())
