"""A sample of the matrix: each fault once, on a scenario that goes round with it, and each command. `make faults` runs all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench
from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault
from tests.faults.matrix import run_cell
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


def sample() -> Iterator[tuple[Fault, Scenario]]:
    """Each fault on a quick scenario, the next one each time; then the commands that had no turn, on faults that end at once."""
    quick = [one for one in SCENARIOS if one.cost == "quick"]
    had: set[str] = set()
    for n, fault in enumerate(FAULTS):
        fitting = [one for one in (*quick[n % len(quick) :], *quick[: n % len(quick)]) if fault.fits(one)]
        had.add(fitting[0].command)
        yield fault, fitting[0]
    rest = [one for one in SCENARIOS if one.command not in had]
    cheap = [fault for fault in FAULTS if fault.cheap]
    for n, scenario in enumerate({one.command: one for one in rest}.values()):
        fitting_faults = [fault for fault in (*cheap[n % len(cheap) :], *cheap) if fault.fits(scenario)]
        yield fitting_faults[0], scenario


@pytest.mark.parametrize(
    ("fault", "scenario"), [pytest.param(f, s, id=f"{f.name}-{s.name}".replace(" ", "-")) for f, s in sample()]
)
def test_the_command_survives(bench: Bench, fault: Fault, scenario: Scenario) -> None:
    if fault.why_not():
        pytest.skip(fault.why_not())
    cell = run_cell(bench, fault, scenario, 1)
    assert cell.verdicts
    assert not cell.lost, str(cell)


def test_the_sample_has_each_fault_and_each_command() -> None:
    pairs = list(sample())
    assert {fault.name for fault, _ in pairs} == {fault.name for fault in FAULTS}
    assert {scenario.command for _, scenario in pairs} == {one.command for one in SCENARIOS}
