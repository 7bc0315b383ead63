"""Faults at one of a command's file operations, each of which may be chosen: full disks, errors, signals, changing sources."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from tests.faults import shim
from tests.faults.bench import Bench, Try
from tests.faults.child import Setting
from tests.faults.fault import Fault, some
from tests.faults.place import Place
from tests.faults.scenario import Scenario
from tests.faults.shim import CHANGE, READ, ROOM, Shim

WRONG = (0, 2, 3)
"""Exit codes where something is wrong from outside: done in spite of it, an error, llama.cpp's process failed."""


def shimmed(bench: Bench, place: Place, under: str, kinds: int, at: int, do: str, value: int = 0) -> Setting:
    """A setting in which something happens at operation `at` on paths that begin with `under`, relative to the place."""
    path = f"{place.folder}/{under}"
    source = place.folder.with_name(f"{place.folder.name}.other") if do in ("rewrite", "replace") else None
    return Setting(shim=Shim(library=bench.library, under=path, kinds=kinds, at=at, do=do, value=value, source=source))


class AtStep(Fault):
    """At one of the operations that change something, of the command's own process."""

    kinds = ROOM | CHANGE
    cheap = False
    do = "error"
    value = 0
    codes: tuple[int, ...] = WRONG
    killed = False

    def why_not(self) -> str:
        return shim.why_not()

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        steps = [path for kind, path in bench.reference(scenario).steps if kind & self.kinds]
        tries: list[Try] = []
        for n in some(range(1, len(steps) + 1), most, self.name, scenario.name):
            setting = partial(self._setting, bench, n)
            one = Try(label=f"step {n} of {len(steps)}", codes=self.codes, setting=setting, killed=self.killed)
            # Every second time the outputs are there already.
            writes = any(name.startswith("out/") for name in bench.reference(scenario).complete.entries)
            over = writes and len(tries) % 2 == 1
            tries.append(replace(one, label=one.label + ", over old outputs", replacing=True) if over else one)
        return tries

    def _setting(self, bench: Bench, n: int, place: Place) -> Setting:
        return shimmed(bench, place, "", self.kinds, n, self.do, self.value)


class DiskFull(AtStep):
    name = "disk full"
    about = "from a chosen write, creation or flush on, each fails with ENOSPC"
    kinds = ROOM
    do = "full"
    value = errno.ENOSPC


class WriteError(AtStep):
    name = "write error"
    about = "one write, creation, flush, rename or removal fails with EIO"
    value = errno.EIO


class InterruptAtStep(AtStep):
    name = "SIGINT at a step"
    about = "SIGINT (Ctrl-C) arrives at a chosen write, creation, flush, rename or removal"
    do = "signal"
    value = signal.SIGINT
    codes = (130, 0, -signal.SIGINT)


class TerminateAtStep(AtStep):
    name = "SIGTERM at a step"
    about = "SIGTERM arrives at a chosen write, creation, flush, rename or removal"
    do = "signal"
    value = signal.SIGTERM
    codes = (143, 0, -signal.SIGTERM)


class KillAtStep(AtStep):
    name = "SIGKILL at a step"
    about = (
        "SIGKILL arrives at a chosen write (when half of it is written), creation, flush, rename or removal; judged after the "
        "next run"
    )
    do = "signal"
    value = signal.SIGKILL
    codes = (-signal.SIGKILL,)
    killed = True


class AtRead(Fault):
    """At one of the reads of an input file, each file in turn."""

    cheap = False
    do = "error"
    value = 0
    excuses = True
    """Whether the file is another afterwards."""

    def why_not(self) -> str:
        return shim.why_not()

    def fits(self, scenario: Scenario) -> bool:
        return bool(scenario.inputs)

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        reference = bench.reference(scenario)
        found = []
        for victim in dict.fromkeys(path for kind, path in reference.steps if kind == READ and path.startswith("in/")):
            if not (reference.kept / victim).is_file():
                continue  # a folder, or a file that might have been there
            count = sum(kind == READ and path == victim for kind, path in reference.steps)
            found += [(victim, n, count) for n in some(range(1, count + 1), max(most // 3, 1), self.name, victim)]
        return [self._try(bench, scenario, *one) for one in some(found, most, self.name, scenario.name)]

    def _try(self, bench: Bench, scenario: Scenario, victim: str, n: int, count: int) -> Try:
        # The entry of a place is the file itself or the folder that holds it.
        entry = "/".join(victim.split("/")[:2])
        return Try(
            label=f"{victim.removeprefix('in/')}, read {n} of {count}",
            codes=WRONG,
            setting=partial(self._setting, bench, victim, n),
            excused=(entry,) if self.excuses else (),
            says=(victim.split("/")[-1],),
            changed=self._changed(bench, scenario, victim),
        )

    def _changed(self, bench: Bench, scenario: Scenario, victim: str) -> dict[str, bytes]:
        """The contents from which a result is complete too."""
        return {}

    def _setting(self, bench: Bench, victim: str, n: int, place: Place) -> Setting:
        return shimmed(bench, place, victim, READ, n, self.do, self.value)


class ReadError(AtRead):
    name = "read error"
    about = "opening an input, or one read of it, fails with EIO"
    value = errno.EIO
    excuses = False


class Truncated(AtRead):
    name = "source truncated"
    about = "an input is cut to half its size at a chosen read of it"
    do = "truncate"


class Removed(AtRead):
    name = "source removed"
    about = "an input is removed at a chosen read of it"
    do = "remove"


class Rewritten(AtRead):
    name = "source rewritten"
    about = (
        "an input is overwritten with other contents at a chosen read of it; a result may be of the old or of the new, never of "
        "both"
    )
    do = "rewrite"

    def _changed(self, bench: Bench, scenario: Scenario, victim: str) -> dict[str, bytes]:
        old = bench.reference(scenario).kept / victim
        name = victim.removeprefix("in/")
        source = bench.materials.folder / name
        return {victim: rewritten(name, (source if source.exists() else old).read_bytes())}

    def _setting(self, bench: Bench, victim: str, n: int, place: Place) -> Setting:
        other = place.folder.with_name(f"{place.folder.name}.other")
        other.write_bytes(rewritten(victim, (place.folder / victim).read_bytes()))
        return super()._setting(bench, victim, n, place)


class Replaced(Rewritten):
    name = "source replaced"
    about = "another file is renamed over an input at a chosen read of it"
    do = "replace"


def rewritten(name: str, data: bytes) -> bytes:
    """Other contents for an input, as good as its own: other weights, another text, white space."""
    if name.endswith(".txt"):
        return data.replace(b"cat", b"dog")
    if name.endswith(".toml"):
        return data.replace(b"0.5", b"0.25")
    if name.endswith(".gguf") or name.endswith(".safetensors"):
        # The lowest bits of some of the last weights.
        count = min(len(data) // 8, 2048) // 4 * 4
        weights = data[-2 * count : -count]
        return data[: -2 * count] + bytes(b ^ (n % 4 == 0) for n, b in enumerate(weights)) + data[-count:]
    return data + b"\n"


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (DiskFull(), WriteError(), InterruptAtStep(), TerminateAtStep(), KillAtStep())
    yield from (ReadError(), Truncated(), Removed(), Rewritten(), Replaced())
