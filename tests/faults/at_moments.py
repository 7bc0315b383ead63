"""Signals at random moments, and two processes at once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from tests.faults import shim
from tests.faults.at_steps import shimmed
from tests.faults.bench import NEITHER, Bench, Try
from tests.faults.child import LIMIT, Ended, Running, Setting, wait_until
from tests.faults.fault import Fault, some
from tests.faults.place import Place
from tests.faults.scenario import Scenario
from tests.faults.shim import CHANGE, ROOM

LONGEST = 15.0
"""Seconds after which a process that was stopped goes on in any case."""


class AtMoment(Fault):
    """A signal at a random moment of the command's time, drawn by a seed."""

    number = signal.SIGINT
    killed = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        draw = random.Random(f"{self.name}:{scenario.name}")
        # A long command is not run to its end for a single try: its first seconds do.
        brief = scenario.cost == "long" and most == 1
        longest = 3.0 if brief else bench.reference(scenario).seconds
        tries = []
        for n in range(most):
            seconds = draw.uniform(0.0, longest)
            codes = (-self.number,) if self.killed else (128 + self.number, scenario.code, -self.number)
            setting = partial(self._setting, seconds)
            tries.append(
                Try(
                    label=f"after {seconds:.3f} s",
                    codes=codes,
                    setting=setting,
                    killed=self.killed,
                    replacing=n % 2 == 1 and bool(scenario.outputs),
                    needs_complete=self.killed or not brief,  # after a kill the next run goes to its end
                )
            )
        return tries

    def _setting(self, seconds: float, _: Place) -> Setting:
        return Setting(number=self.number, seconds=seconds)


class Interrupt(AtMoment):
    name = "SIGINT"
    about = "SIGINT at a random moment"


class Terminate(AtMoment):
    name = "SIGTERM"
    about = "SIGTERM at a random moment"
    number = signal.SIGTERM


class Kill(AtMoment):
    name = "SIGKILL"
    about = "SIGKILL at a random moment; judged after the next run"
    number = signal.SIGKILL
    killed = True
    cheap = False


class HangUp(AtMoment):
    name = "SIGHUP"
    about = "SIGHUP at a random moment, as when a terminal is closed"
    number = signal.SIGHUP


class Stopped(Fault):
    name = "stopped and continued"
    about = "all its processes are stopped at a random moment (Ctrl-Z), and go on later"
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        draw = random.Random(f"{self.name}:{scenario.name}")
        longest = bench.reference(scenario).seconds / 2  # the shim made it slower
        moments = [draw.uniform(0.0, longest) for _ in range(max(most // 2, 1))]
        return [
            Try(label=f"after {seconds:.3f} s", codes=(scenario.code,), setting=partial(self._setting, seconds))
            for seconds in moments
        ]

    def _setting(self, seconds: float, _: Place) -> Setting:
        return Setting(number=signal.SIGSTOP, seconds=seconds, pause=1.0)


class TwoAtOnce(Fault):
    name = "two at once"
    about = "the same command twice at once, to the same outputs: one may refuse, and what stands in the end is of one whole run"
    cheap = False

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        draw = random.Random(f"{self.name}:{scenario.name}")
        count = max(most // 2, 1)
        delays = [draw.uniform(0, 0.7) * n / count for n in range(count)]
        return [
            Try(
                label=f"{delay:.3f} s apart" + (", --force" if n % 2 else ""),
                codes=(scenario.code, 2),
                act=partial(self._both, delay, n % 2 == 1 and bool(scenario.outputs)),
                prints=False,
                twice=bool(scenario.changes),
            )
            for n, delay in enumerate(delays)
        ]

    def _both(self, delay: float, force: bool, bench: Bench, scenario: Scenario, place: Place) -> Ended:
        """Both runs; how that one ended that did worse, or any: what is left is judged by its files."""
        arguments = place.arguments(scenario, force=force)
        first = Running(place, arguments, Setting(), 1)
        time.sleep(delay)
        second = Running(place, arguments, Setting(), 2)
        return _worse(first.finish(), second.finish(), scenario.code)


class StoppedInside(Fault):
    name = "two at once, one stopped"
    about = (
        "one is stopped (SIGSTOP) at a chosen write, creation, flush, rename or removal, the same command runs to its end, and "
        "the first goes on"
    )
    cheap = False

    def why_not(self) -> str:
        return shim.why_not()

    def tries(self, bench: Bench, scenario: Scenario, most: int) -> list[Try]:
        steps = [path for kind, path in bench.reference(scenario).steps if kind & (ROOM | CHANGE)]
        chosen = some(range(1, len(steps) + 1), max(most // 3, 1), self.name, scenario.name)
        return [
            Try(
                label=f"at step {n} of {len(steps)}",
                codes=(scenario.code, 2),
                act=partial(self._both, n, bool(scenario.outputs) and turn % 2 == 1),
                prints=False,
                twice=bool(scenario.changes),
            )
            for turn, n in enumerate(chosen)
        ]

    def _both(self, n: int, force: bool, bench: Bench, scenario: Scenario, place: Place) -> Ended:
        """The first run until it stops, the second, the rest of the first; as `TwoAtOnce`."""
        arguments = place.arguments(scenario, force=force)
        setting = shimmed(bench, place, "", ROOM | CHANGE, n, "signal", signal.SIGSTOP)
        first = Running(place, arguments, setting, 1)
        # It stops late on a busy machine; a SIGCONT before that would be lost.
        wait_until(first.stopped, LIMIT)
        second = Running(place, arguments, Setting(), 2)
        # It may wait for a lock that the first one holds.
        wait_until(lambda: second.process.poll() is not None, LONGEST)
        if first.process.poll() is None:
            first.process.send_signal(signal.SIGCONT)
        return _worse(first.finish(), second.finish(), scenario.code)


def _worse(first: Ended, second: Ended, good: int) -> Ended:
    """The one to judge: both must have ended well or refused, and one at least well."""
    failed = [ended for ended in (first, second) if ended.code != good]
    if len(failed) == 2:
        return failed[0] if failed[0].code != 2 else replace(failed[1], code=NEITHER)
    return failed[0] if failed else first


def faults() -> Iterator[Fault]:
    """The faults of this module."""
    yield from (Interrupt(), Terminate(), Kill(), HangUp(), Stopped(), TwoAtOnce(), StoppedInside())
