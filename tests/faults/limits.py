"""Limits that a shell, a container or a batch system sets: memory, open files, processes and threads, processor time."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from functools import partial

from gguf_tools.machine import available_cores
from tests.faults import shim
from tests.faults.at_steps import WRONG
from tests.faults.bench import Bench, Try
from tests.faults.child import Setting
from tests.faults.fault import Fault, some
from tests.faults.place import Place
from tests.faults.scenario import Scenario
from tests.faults.shim import PROCESS, THREAD, Shim

MEMORY = (60, 120, 200, 300, 450, 700, 1000, 1500, 2200, 3000)
"""MiB of address space: from where Python just begins to where torch and llama.cpp run."""
FILES = (6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)
OPENMP = "libgomp: Thread creation failed"


class Limited(Fault):
    """A soft limit of the kernel's, drawn from a few."""

    number = resource.RLIMIT_AS
    limits: tuple[int, ...] = ()
    unit, factor = "", 1
    codes: tuple[int, ...] = WRONG
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        return [
            Try(label=f"{n} {self.unit}", codes=self.codes, setting=partial(self._setting, n * self.factor))
            for n in some(self.limits, most, self.name, scenario.name)
        ]

    def _setting(self, limit: int, _: Place) -> Setting:
        return Setting(limits={self.number: limit})


class LittleMemory(Limited):
    name = "little memory"
    about = f"RLIMIT_AS, from {MEMORY[0]} to {MEMORY[-1]} MiB of address space"
    limits, unit, factor = MEMORY, "MiB", 1 << 20


class FewFiles(Limited):
    name = "few open files"
    about = f"RLIMIT_NOFILE, from {FILES[0]} to {FILES[-1]} files that may be open at a time"
    number = resource.RLIMIT_NOFILE
    limits, unit = FILES, "files"


class ProcessorTime(Limited):
    name = "processor time"
    about = "RLIMIT_CPU, 1 to 4 seconds: SIGXCPU arrives when they are used up"
    number = resource.RLIMIT_CPU
    limits, unit = (1, 2, 3, 4), "s"
    codes = (*WRONG, 128 + signal.SIGXCPU, -signal.SIGXCPU)


class NoProcesses(Fault):
    name = "no processes or threads"
    about = (
        "from a chosen one on, no process, no thread or neither can be started (EAGAIN), as where a limit on them is reached; "
        "where OpenMP's library, with which torch computes, gets none, it ends the process, which is judged as SIGKILL is"
    )
    cheap = False

    def why_not(self) -> str:
        return shim.why_not()

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        # The threads that OpenBLAS starts when numpy is imported, one for each core, are among the first.
        first = available_cores() + 1
        made = [(kinds, n) for n in (1, first, first + 1, first + 3) for kinds in (PROCESS | THREAD, THREAD)]
        made += [(PROCESS, n) for n in (1, 2, 3)]
        names = {PROCESS: "process", THREAD: "thread", PROCESS | THREAD: "process or thread"}
        return [
            Try(
                label=f"{names[kinds]} {n}",
                codes=WRONG,
                setting=partial(self._setting, bench, kinds, n),
                aborts=OPENMP,
            )
            for kinds, n in some(made, most, self.name, scenario.name)
        ]

    def _setting(self, bench: Bench, kinds: int, n: int, _: Place) -> Setting:
        return Setting(shim=Shim(library=bench.library, under="/", kinds=kinds, at=n, do="full", value=errno.EAGAIN))


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (LittleMemory(), FewFiles(), ProcessorTime(), NoProcesses())
