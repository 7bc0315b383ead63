"""Files and folders that may not be read, searched or written, for root too: it gives up its capabilities."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.faults.bench import Bench, Try
from tests.faults.child import Setting
from tests.faults.fault import Fault, some
from tests.faults.on_paths import REFUSED
from tests.faults.place import Place
from tests.faults.scenario import Scenario

AS_ANYBODY = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--")
"""Before a command: modes hold for it, though it is root's."""
FOLDER_MODES = (0o000, 0o300, 0o400)
"""Not at all; not listed; listed, but nothing in it opened."""


def no_rights() -> str:
    """Why capabilities cannot be given up here; empty where they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root can look at what it may not read"
    return "" if shutil.which("setpriv") else "there is no setpriv"


class Permission(Fault):
    """Modes of inputs or outputs that forbid something; only root can look at them afterwards."""

    cheap = False

    def why_not(self) -> str:
        return no_rights()


class NoInput(Permission):
    name = "no permission for an input"
    about = "the mode of an input, of a file in it or of its folder forbids to read, list or search it"

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.inputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        made: list[tuple[str, int]] = [("", mode) for mode in FOLDER_MODES]
        for name in scenario.inputs:
            path = bench.materials.path(name)
            made += [(name, mode) for mode in (FOLDER_MODES if path.is_dir() else (0o000,))]
            made += [(f"{name}/{other.name}", 0o000) for other in sorted(path.iterdir())] if path.is_dir() else []
        return [
            Try(
                label=f"in/{name}, mode {mode:03o}",
                codes=(scenario.code, 2),
                prepare=partial(_set, f"in/{name}", mode),
                setting=_as_anybody,
                says=(name.split("/")[-1],),
                # What is listed or searched may do: a file is opened by its name, a folder's state is looked at.
                prints=False,
            )
            for name, mode in some(made, most, self.name, scenario.name)
        ]


class NoOutput(Permission):
    name = "no permission for OUT"
    about = "the mode of the outputs' folder forbids to write, list or search it; or that of an output which --force replaces"

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.outputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        made = [("", mode) for mode in (0o000, 0o300, 0o400, 0o500)] + [(out, 0) for out in scenario.single]
        return [
            Try(
                label=f"out/{out}, mode {mode:03o}",
                codes=(scenario.code, 2) if out or mode == 0o300 else REFUSED,
                prepare=partial(_set, f"out/{out}", mode),
                setting=_as_anybody,
                replacing=bool(out),
                says=(out,),
                prints=False,
            )
            for out, mode in some(made, most, self.name, scenario.name)
        ]


def _set(name: str, mode: int, place: Place) -> None:
    path: Path = place.folder / name
    if path.exists():  # a command need not write all outputs that are named
        path.chmod(mode)


def _as_anybody(_: Place) -> Setting:
    return Setting(wrapper=AS_ANYBODY)


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (NoInput(), NoOutput())
