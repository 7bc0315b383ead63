"""Which commands there are, and which of what they write a scenario tries."""

from __future__ import annotations

from collections.abc import Iterator

import click

from gguf_tools.commands.common import WRITTEN
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS

Names = tuple[str, ...]


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, by the names that lead to it."""
    yield from _below(group, click.Context(group), ())


def _below(command: click.Command, context: click.Context, names: Names) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group) or (names and command.invoke_without_command):
        yield " ".join(names), command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is None:
                raise ValueError(f"the command {name} has no implementation")
            yield from _below(found, click.Context(found, parent=context), (*names, name))


def undeclared(group: click.Group, scenarios: tuple[Scenario, ...] = SCENARIOS) -> list[str]:
    """What the table of scenarios lacks: commands, options that write; and scenarios of what is not there."""
    there = dict(commands(group))
    lacking = [f"{one.name}: there is no such command" for one in scenarios if one.command not in there]
    for name, command in there.items():
        lines = [one.line.split() for one in scenarios if one.command == name]
        if not lines:
            lacking.append(f"{name}: has no scenario; add the line that runs it to tests/faults/scenarios.py")
        for param in command.params if lines else ():
            tried = any(set(param.opts) & set(line) for line in lines)
            if param.name in WRITTEN and isinstance(param, click.Option) and not tried:
                lacking.append(f"{name}: no scenario gives {param.opts[0]}, which writes a file")
    return lacking
