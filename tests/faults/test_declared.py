"""A command joins the matrix by existing: without a scenario, or with an output that none tries, a test fails."""

from __future__ import annotations

import click

from tests.faults.catalogue import FAULTS
from tests.faults.declared import commands, undeclared
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS


def group() -> click.Group:
    """A group with a command, and a group in it that can be run itself."""

    @click.group()
    def top() -> None:
        pass

    @top.command()
    @click.option("--json", "json_path")
    def plain(json_path: str) -> None:
        pass

    @top.group(invoke_without_command=True)
    def search() -> None:
        pass

    @search.command()
    def report() -> None:
        pass

    return top


def test_a_new_command_is_noticed() -> None:
    assert [name for name, _ in commands(group())] == ["plain", "search", "search report"]
    assert [line.split(":")[0] for line in undeclared(group(), ())] == ["plain", "search", "search report"]


def test_an_output_that_no_scenario_gives_is_noticed() -> None:
    scenarios = tuple(Scenario(command=name, line=name) for name, _ in commands(group()))
    assert undeclared(group(), scenarios) == ["plain: no scenario gives --json, which writes a file"]
    more = Scenario(command="plain", line="plain --json {out}/report.json")
    assert undeclared(group(), (*scenarios, more)) == []
    gone = Scenario(command="gone", line="gone")
    assert undeclared(group(), (*scenarios, more, gone)) == ["gone: there is no such command"]


def test_names_tell_apart() -> None:
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
