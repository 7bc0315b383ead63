"""Trying: one run of one scenario under one fault, and the verdict on it."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults import shim
from tests.faults.child import Ended, Setting, run
from tests.faults.materials import Materials
from tests.faults.place import TINYQ, Place, Snapshot, copy
from tests.faults.scenario import Scenario
from tests.faults.shim import Shim
from tests.faults.verdict import Complete, Expected, Found, complaints, unsettled

NEITHER = -1000
"""Stands for an exit code where none of two runs ended well, or a later one failed."""
ALL_KINDS = shim.READ | shim.ROOM | shim.CHANGE
_SMALLER = """
from gguf_tools import cli
from gguf_tools.__main__ import main

found = cli.LazyGroup.get_command


def get_command(*arguments):
    command = found(*arguments)
    exec({setup!r}, {{}})
    return command


cli.LazyGroup.get_command = get_command
main()
"""
"""Runs a scenario's `setup` when the command has been imported, so that its checks of the surroundings come first."""
Change = Callable[[Place], None]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A run without a fault: what it leaves, how long it takes, its file operations in order, and its outputs to copy."""

    complete: Complete
    seconds: float
    steps: Sequence[tuple[int, str]]
    kept: Path


@dataclass(frozen=True, kw_only=True)
class Try:
    """One run under a fault. `Setting` may depend on the place: a function gives it."""

    label: str
    codes: Collection[int]
    setting: Callable[[Place], Setting] = lambda _: Setting()
    prepare: Change | None = None
    """Changes the place before it is looked at."""
    act: Callable[[Bench, Scenario, Place], Ended] | None = None
    """Runs the command, where that is more than one run."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """Other paths, relative to the place, for outputs by name."""
    below: str = ""
    """A folder, below the usual one, for the place."""
    replacing: bool = False
    """The outputs are there already, and --force is given."""
    force: bool = False
    says: Sequence[str] = ()
    killed: bool = False
    excused: Collection[str] = ()
    changed: Mapping[str, bytes] = field(default_factory=dict)
    """Inputs that the fault rewrites, relative to the place: a result from the new ones is complete too."""
    twice: bool = False
    """Two runs, one after the other, are complete too."""
    prints: bool = True
    aborts: str = ""
    """What a library says on stderr that answers the fault by ending the process; that is judged as SIGKILL is."""
    needs_complete: bool = True
    """Whether the verdict needs to know what a run without a fault leaves; not where the command must do nothing."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a try; without complaints the command survived."""

    fault: str
    scenario: Scenario
    label: str
    complaints: Sequence[str] = ()
    reached: bool = True
    where: str = ""
    err: str = ""
    seconds: float = 0.0


class Bench:
    """Materials, runs without a fault, and places for tries, in one folder."""

    def __init__(self, folder: Path, program: tuple[str, ...] = TINYQ) -> None:
        """`folder` must be empty; `program` is what is run, followed by a scenario's arguments."""
        self.folder, self.program = folder, program
        self.materials = Materials(folder / "materials")
        self.materials.folder.mkdir()
        self._numbers = itertools.count()
        self._references: dict[tuple[object, ...], Reference | None] = {}
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}
        self._library: Path | None = None

    @property
    def library(self) -> Path:
        """The shim, compiled when it is first asked for."""
        with self._lock:
            self._library = self._library or shim.build(self.folder)
            return self._library

    def place(self, scenario: Scenario, below: str = "") -> Place:
        """A new place with the scenario's inputs, in a folder `below` one of its own."""
        # Names are of one length: reports hold paths, and files that hold them keep their size.
        top = self.folder / f"w{next(self._numbers):07}"
        program = (sys.executable, "-c", _SMALLER.format(setup=scenario.setup)) if scenario.setup else self.program
        return Place.made(top / below, scenario, self.materials, program)

    def reference(self, scenario: Scenario) -> Reference:
        """The run without a fault, made once."""
        found = self.reference_on(scenario, {})
        if found is None:
            raise RuntimeError(f"{scenario.name} was not run")
        return found

    def reference_on(self, scenario: Scenario, changed: Mapping[str, bytes]) -> Reference | None:
        """The run on other contents of some inputs, made once; None where it does not end as with the scenario's own."""
        key = (scenario.name, *sorted(changed.items()))
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._references:
                self._references[key] = self._undisturbed(scenario, changed)
            return self._references[key]

    def _undisturbed(self, scenario: Scenario, changed: Mapping[str, bytes]) -> Reference | None:
        place = self.place(scenario)
        for name, data in changed.items():
            (place.folder / name).write_bytes(data)
        before = Snapshot.of(place, scenario)
        setting = Setting() if shim.why_not() else Setting(shim=self.counted(place))
        ended = run(place, place.arguments(scenario), setting)
        if changed and ended.code != scenario.code:
            return None  # other contents are not as good, such as those that a file is held against
        if ended.code != scenario.code:
            raise RuntimeError(f"{scenario.name} fails without a fault: exit code {ended.code}, {ended.err}")
        complete = Complete.of(before, Snapshot.of(place, scenario), normalised(ended, place))
        return Reference(complete=complete, seconds=ended.seconds, steps=ended.steps, kept=place.folder)

    def _twice(self, scenario: Scenario) -> Complete:
        """What two runs leave, one after the other; made anew each time, since few tries need it."""
        place = self.place(scenario)
        try:
            before = Snapshot.of(place, scenario)
            run(place, place.arguments(scenario))
            ended = run(place, place.arguments(scenario, force=True))
            return Complete.of(before, Snapshot.of(place, scenario), normalised(ended, place))
        finally:
            place.remove()

    def counted(self, place: Place) -> Shim:
        """A shim that only counts, all over the place."""
        return Shim(library=self.library, under=f"{place.folder}/", kinds=ALL_KINDS)

    def put_old(self, scenario: Scenario, place: Place) -> None:
        """Put outputs at their places that differ from those that will be written: of a run before."""
        reference = self.reference(scenario)
        for name, entry in reference.complete.entries.items():
            path = place.path_of(name)
            if name.startswith("out/") and entry is not None:
                path.parent.mkdir(exist_ok=True)
                copy(replace(place, folder=reference.kept).path_of(name), path)
                for file in (path, *path.rglob("*")):
                    if file.is_file():
                        with file.open("ab") as stream:
                            stream.write(b"old")

    def attempt(self, fault: str, scenario: Scenario, one: Try) -> Verdict:
        """Run it and judge it."""
        place = self.place(scenario, one.below)
        try:
            return self._judged(fault, scenario, one, place)
        finally:
            place.remove()

    def _judged(self, fault: str, scenario: Scenario, one: Try, place: Place) -> Verdict:
        """Prepare the place, run, compare; after a SIGKILL, run again and compare what that leaves."""
        if one.replacing:
            self.put_old(scenario, place)
        if one.prepare:
            one.prepare(place)
        before = Snapshot.of(place, scenario)
        if one.act:
            ended = one.act(self, scenario, place)
        else:
            instead = {name: place.folder / path for name, path in one.instead.items()}
            arguments = place.arguments(scenario, instead, force=one.replacing or one.force)
            ended = run(place, arguments, one.setting(place))
        ended = normalised(ended, place)
        if one.aborts and one.aborts in ended.err:
            one = replace(one, killed=True, codes=(-signal.SIGKILL,))
            ended = replace(ended, code=-signal.SIGKILL, err="")
        completes = [Complete(entries={}, out="")]
        if one.needs_complete:
            found_ones = [self.reference_on(scenario, changed) for changed in ({}, one.changed)]
            completes = [reference.complete for reference in found_ones if reference]
        if one.twice:
            completes.append(self._twice(scenario))
        # A change in place that a full disk stops half-way stays resumable, as after a kill, and its error says so.
        in_place = bool(scenario.recovery) and any(place.inputs.glob(".*.tinyq-journal"))
        # SQLite keeps what it could not move into the database in a journal beside it, and reads it there.
        half_done = in_place or any(place.inputs.glob("*.db-wal"))
        spoilt = any(f"in/{name}" in one.excused for name in scenario.changes)
        expected = Expected(
            codes=one.codes,
            good=scenario.code,
            says=(*one.says, *(["journal" if spoilt else "--undo"] if in_place and not one.killed else [])),
            killed=one.killed,
            half_done=half_done,
            excused=one.excused,
            progress=scenario.progress,
            tells=scenario.tells,
            prints=one.prints and "stdout" not in scenario.varies,
        )
        found = Found(before=before, after=Snapshot.of(place, scenario), ended=ended)
        made = complaints(found, completes, expected)
        if (one.killed or (half_done and not spoilt)) and ended.reached:
            made += self._recovered(scenario, place, before, completes)
        return Verdict(
            fault=fault,
            scenario=scenario,
            label=one.label,
            complaints=made if ended.reached else (),
            reached=ended.reached,
            where=ended.where,
            err=ended.err,
            seconds=ended.seconds,
        )

    def _recovered(
        self, scenario: Scenario, place: Place, before: Snapshot, completes: Sequence[Complete]
    ) -> list[str]:
        """What speaks against the state after the next run, which completes or clears away what a kill left."""
        if scenario.recovery:
            # There may be nothing to complete, which is an error; what follows must go well.
            ended, *rest = (run(place, place.words(line)) for line in scenario.recovery)
            failed = [one for one in rest if one.code]
            ended = replace(failed[0], code=NEITHER) if failed else ended
        else:
            ended = run(place, place.arguments(scenario, force=True))
        ended = normalised(ended, place)
        found = Found(before=before, after=Snapshot.of(place, scenario), ended=ended)
        good = None if scenario.recovery else scenario.code
        return [f"after the next run: {line}" for line in unsettled(found, completes, good)]


def normalised(ended: Ended, place: Place) -> Ended:
    """What was printed, without the place's own path."""
    own = os.fsencode(place.folder).decode("utf-8", "replace")
    return replace(ended, out=ended.out.replace(own, "{work}"), err=ended.err.replace(own, "{work}"))
