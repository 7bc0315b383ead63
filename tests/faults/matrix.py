"""Running pairs of a fault and a scenario, several at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.faults.bench import Bench, Verdict
from tests.faults.fault import Fault
from tests.faults.scenario import Scenario

MOST = 6
"""Tries of a kind in each pair, in the whole run."""


@dataclass(frozen=True)
class Cell:
    """What came of a fault on a scenario."""

    fault: Fault
    scenario: Scenario
    verdicts: tuple[Verdict, ...]

    @property
    def tried(self) -> int:
        """Tries in which the fault came to pass."""
        return sum(verdict.reached for verdict in self.verdicts)

    @property
    def lost(self) -> list[Verdict]:
        """The tries that the command did not survive."""
        return [verdict for verdict in self.verdicts if verdict.complaints]

    def __str__(self) -> str:
        lines = [f"{self.fault.name} × {self.scenario.name}: {self.tried} tried, {len(self.lost)} lost"]
        for verdict in self.lost:
            where = f" ({verdict.where})" if verdict.where else ""
            lines += [f"    {verdict.label}{where}", *(f"      - {one}" for one in verdict.complaints)]
        return "\n".join(lines)


def run_cell(bench: Bench, fault: Fault, scenario: Scenario, most: int) -> Cell:
    """All tries of a pair."""
    tries = fault.tries(bench, scenario, scenario.tries(most)) if fault.fits(scenario) else []
    return Cell(fault, scenario, tuple(bench.attempt(fault.name, scenario, one) for one in tries))


def run_all(bench: Bench, pairs: Sequence[tuple[Fault, Scenario]], most: int, jobs: int) -> Iterator[Cell]:
    """The pairs, `jobs` at a time, in order; faults that cannot be tried here are left out."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(run_cell, bench, fault, scenario, most) for fault, scenario in pairs if not fault.why_not()
        ]
        try:
            yield from (future.result() for future in futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
