"""Outputs that are an input, a link, a device or a folder, or lie where nothing can be written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

from tests.faults.bench import Bench, Try
from tests.faults.child import Setting
from tests.faults.fault import Fault, some
from tests.faults.place import Place
from tests.faults.scenario import Scenario

REFUSED = (2,)
DONE = (0,)
PRECIOUS = b"precious"
UNSHARE = ("unshare", "--mount", "--map-root-user", "--")
_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
REPORTS = ("--json", "--html", "--csv", "--markdown")
"""Options that take a stream, too."""


@cache
def no_mounts() -> str:
    """Why nothing can be mounted in a namespace of one's own; empty where it can."""
    if not shutil.which("unshare"):
        return "there is no unshare"
    done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "no file system can be mounted, not even in a namespace of one's own"


def read_only(top: str, place: Place) -> Setting:
    """A setting in which a folder of the place is read-only, for root too: mounted so, in a namespace of the command's own."""
    return Setting(wrapper=(*UNSHARE, "sh", "-c", _READ_ONLY, "sh", str(place.folder / top)))


class OutIsInput(Fault):
    name = "OUT is an input"
    about = "each output in turn is given the path of each input, with --force"

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.inputs and scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        pairs = [(out, name) for out in scenario.outputs for name in _files_of_inputs(bench, scenario)]
        return [
            Try(
                label=f"{out} is {name}",
                codes=REFUSED,
                instead={out: name},
                force=True,
                says=(name.split("/")[-1],),
                needs_complete=False,
            )
            for out, name in some(pairs, most, self.name, scenario.name)
        ]


def _files_of_inputs(bench: Bench, scenario: Scenario) -> list[str]:
    """The inputs, and for folders the files in them."""
    found = []
    for name in scenario.inputs:
        path = bench.materials.path(name)
        below = [other.name for other in sorted(path.iterdir())] if path.is_dir() else []
        found += [f"in/{name}", *(f"in/{name}/{other}" for other in below)]
    return found


Way = tuple[str, Callable[[str, Place], None], bool, tuple[int, ...]]


class AtOutput(Fault):
    """Something stands at an output's place already, of each output in turn."""

    ways: tuple[Way, ...] = ()
    """Label, what puts it there, whether --force is given, and the exit codes that count."""

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return at_outputs(self.name, self.ways, scenario, most)


def at_outputs(name: str, ways: Sequence[Way], scenario: Scenario, most: int) -> list[Try]:
    """A try for each output in each way. A folder of several outputs may be there, so that it is left aside."""
    made = [(out, *way) for out in scenario.single for way in ways]
    return [
        Try(
            label=f"{out}: {label}",
            codes=codes,
            prepare=partial(put, out),
            force=force,
            says=(out,),
            needs_complete=0 in codes,
        )
        for out, label, put, force, codes in some(made, most, name, scenario.name)
    ]


def _dangling(out: str, place: Place) -> None:
    (place.outputs / out).symlink_to(place.outputs / "nowhere")


def _to_file(out: str, place: Place) -> None:
    (place.inputs / "bystander").write_bytes(PRECIOUS)
    (place.outputs / out).symlink_to(place.inputs / "bystander")


def _to_input(out: str, place: Place) -> None:
    first = next(path for path in sorted(place.inputs.iterdir()) if not path.name.startswith("."))
    (place.outputs / out).symlink_to(first / "config.json" if first.is_dir() else first)


def _bystander(place: Place) -> None:
    (place.outputs / "file").write_bytes(PRECIOUS)


def _folder(out: str, place: Place) -> None:
    (place.outputs / out).mkdir()
    (place.outputs / out / "bystander").write_bytes(PRECIOUS)


class OutIsLink(AtOutput):
    name = "OUT is a link"
    cheap = False
    about = (
        "a link stands at an output's place: to nothing, to a file, to an input; with and without --force. It is refused or "
        "replaced, and never followed"
    )
    ways: tuple[Way, ...] = (
        ("a dangling link", _dangling, False, REFUSED),
        ("a dangling link, --force", _dangling, True, (0, 2)),
        ("a link to a file", _to_file, False, REFUSED),
        ("a link to a file, --force", _to_file, True, (0, 2)),
    )

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        ways = self.ways + ((("a link to an input, --force", _to_input, True, REFUSED),) if scenario.inputs else ())
        return at_outputs(self.name, ways, scenario, most)


class OutIsFolder(AtOutput):
    name = "OUT is a folder"
    about = "a folder that holds a file stands at an output's place, with and without --force"
    ways: tuple[Way, ...] = (("a folder", _folder, False, REFUSED), ("a folder, --force", _folder, True, REFUSED))


class OutIsDevice(Fault):
    name = "OUT is a device"
    about = (
        "a device stands at an output's place: one that takes all, and one that is always full. Reports may go to a device, all "
        "else is refused; and the device stays"
    )
    cheap = False

    def why_not(self) -> str:
        return "" if hasattr(os, "geteuid") and os.geteuid() == 0 else "only root can make a device"

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        made = [(out, label, minor) for out in scenario.outputs for label, minor in (("null", 3), ("full", 7))]
        tries = []
        for out, label, minor in some(made, most, self.name, scenario.name):
            report = any(f"{option} {{out}}/{out}" in scenario.line for option in REPORTS)
            taken = report and label == "null"
            tries.append(
                Try(
                    label=f"{out}: /dev/{label}",
                    codes=(scenario.code,) if taken else REFUSED,
                    prepare=partial(self._put, out, minor),
                    force=not report,
                    says=(out,),
                    excused=(f"out/{out}",) if taken else (),
                    needs_complete=report,
                )
            )
        return tries

    def _put(self, out: str, minor: int, place: Place) -> None:
        os.mknod(place.outputs / out, 0o666 | stat.S_IFCHR, os.makedev(1, minor))


class ReadOnlyOut(Fault):
    name = "OUT in a read-only folder"
    about = "the outputs' folder is mounted read-only, which holds for root too"

    def why_not(self) -> str:
        return no_mounts()

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        # What a command changes in place changes before the report of it fails.
        done = Try(
            label="outputs", codes=REFUSED, setting=partial(read_only, "out"), needs_complete=bool(scenario.changes)
        )
        return [done]


class ReadOnlyIn(Fault):
    name = "inputs in a read-only folder"
    about = "the inputs' folder is mounted read-only, where only a change in place has to write, which is refused"
    cheap = False

    def why_not(self) -> str:
        return no_mounts()

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.inputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        codes = REFUSED if scenario.changes else (scenario.code,)
        return [Try(label="inputs", codes=codes, setting=partial(read_only, "in"))]


class NoFolder(Fault):
    name = "OUT's folder is missing"
    about = "each output in turn is to lie in a folder that does not exist, or in a file"

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        made = [(out, way) for out in scenario.single for way in ("out/none", "out/file")]
        return [
            Try(
                label=f"{out} in {way}",
                codes=REFUSED,
                instead={out: f"{way}/{out}"},
                prepare=_bystander,
                says=(out,),
                needs_complete=False,
            )
            for out, way in some(made, most, self.name, scenario.name)
        ]


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (OutIsInput(), OutIsLink(), OutIsFolder(), OutIsDevice(), ReadOnlyOut(), ReadOnlyIn(), NoFolder())
