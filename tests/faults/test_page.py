"""The page is a table that can be read back, so that a part of the matrix can be run again."""

from __future__ import annotations

from tests.faults.bench import Verdict
from tests.faults.catalogue import FAULTS
from tests.faults.matrix import Cell
from tests.faults.page import Count, counted, page, parsed
from tests.faults.scenarios import SCENARIOS

COUNTS = {
    (FAULTS[0].name, "convert"): Count(3, 0),
    (FAULTS[0].name, "search report"): Count(1, 1),
    (FAULTS[1].name, "convert"): Count(1200, 7),
    (FAULTS[1].name, "inspect"): Count(),
}
COMMANDS = ["convert", "inspect", "search report"]


def test_a_page_is_read_back() -> None:
    assert parsed(page(COUNTS, COMMANDS)) == COUNTS


def test_a_page_says_what_was_lost() -> None:
    text = page(COUNTS, COMMANDS)
    assert "In all 1,204 tries, 8 lost." in text
    assert f"| {FAULTS[0].name} | 3/3/0 | ? | **1/0/1** | **4/3/1** |" in text
    assert f"| {FAULTS[1].name} | **1200/1193/7** | – | ? | **1200/1193/7** |" in text
    assert "| all | **1203/1196/7** | – | **1/0/1** | **1204/1196/8** |" in text
    good = {key: Count(3, 0) for key in COUNTS}
    assert "In all 12 tries; none was lost." in page(good, COMMANDS)


def test_what_cannot_happen_is_told_from_what_was_not_tried() -> None:
    fault, scenario = FAULTS[0], SCENARIOS[0]

    def cell(*reached: bool) -> Cell:
        verdicts = [Verdict(fault=fault.name, scenario=scenario, label="", reached=one) for one in reached]
        return Cell(fault, scenario, tuple(verdicts))

    key = fault.name, scenario.command
    assert counted([cell()]) == {key: Count()}
    assert counted([cell(False)]) == {}
    assert counted([cell(False), cell()]) == {}
    assert counted([cell(False), cell(True, False)]) == {key: Count(1)}


def test_every_fault_has_a_row_and_the_command_that_runs_it() -> None:
    text = page({}, COMMANDS)
    for fault in FAULTS:
        assert f"| {fault.name} | ? | ? | ? | ? |" in text
        assert f'- **{fault.name}**: {fault.about}. `python -m tests.faults --fault "{fault.name}"`' in text
