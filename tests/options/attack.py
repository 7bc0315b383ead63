"""Command lines with odd values: each option and argument of each command, in lines that work; and pairs of options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import click

from gguf_tools.cli import tinyq
from gguf_tools.commands.common import WRITTEN
from tests.faults.declared import commands
from tests.faults.scenario import Scenario
from tests.faults.scenarios import SCENARIOS
from tests.options.values import NUMBERS, USUAL, VALUES

SHOWN = 60
"""Most characters of a value in a label."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A command line: what it changes in a scenario's, and its arguments after `tinyq`, with `{in}` and `{out}` in them."""

    scenario: Scenario
    label: str
    arguments: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """The same for scenarios of one command."""
        return self.scenario.command, self.label


@dataclass(frozen=True, kw_only=True)
class Line:
    """A scenario's arguments: the names of its command, and where each option's value and each argument stands in the others."""

    scenario: Scenario
    command: tuple[str, ...]
    given: tuple[str, ...]
    options: dict[str, int]
    """By parameter, the place of its last value, or of itself if it is a flag."""
    arguments: tuple[int, ...]

    @classmethod
    def of(cls, scenario: Scenario, command: click.Command) -> Line:
        """A scenario's line, taken apart."""
        words = tuple(shlex.split(scenario.line))
        count = len(scenario.command.split())
        given = words[count:]
        by_name = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}
        options: dict[str, int] = {}
        arguments: list[int] = []
        place = 0
        while place < len(given):
            param = by_name.get(given[place])
            if param is not None:
                place += not is_flag(param)
                options[param.name or ""] = place
            elif given[place].startswith("--"):
                place += 1  # an option of layer surgery, and its value
            else:
                arguments.append(place)
            place += 1
        return cls(scenario=scenario, command=words[:count], given=given, options=options, arguments=tuple(arguments))

    def replaced(self, place: int, value: str) -> tuple[str, ...]:
        """The whole line with another word at a place."""
        return (*self.command, *self.given[:place], value, *self.given[place + 1 :])

    def with_option(self, param: click.Option, value: str) -> tuple[str, ...]:
        """The whole line with another value of an option, or with the option."""
        if param.name in self.options:
            return self.replaced(self.options[param.name], value)
        return (*self.command, *self.given, *words_of(param, value))


def words_of(param: click.Option, value: str) -> tuple[str, ...]:
    """An option on a command line; a value that looks like an option is joined to it."""
    name = param.opts[0]
    if is_flag(param):
        return (name,)
    return (f"{name}={value}",) if value.startswith("-") and name.startswith("--") else (name, value)


def is_flag(param: click.Parameter) -> bool:
    """Whether a parameter is an option that takes no value."""
    return isinstance(param, click.Option) and param.is_flag


def fitting(param: click.Parameter) -> Sequence[str]:
    """The values that may show something of a parameter: what click alone converts gets numbers and the shortest texts."""
    if isinstance(param.type, click.Choice) or param.type.name.startswith(("integer", "float")):
        return [value for value in VALUES if value in NUMBERS or len(value) < 2]
    # A report that is written to a pipe waits for its reader, as any program does.
    return [value for value in VALUES if not (param.name in WRITTEN and value.endswith("fifo"))]


def usual(param: click.Option) -> str:
    """A value that an option usually takes."""
    if isinstance(param.type, click.Choice):
        return str(param.type.choices[-1])
    name = param.type.name
    given = {"integer": "2", "integer range": "2", "float": "0.5", "path": "{in}/text.txt"}.get(name, "x")
    return USUAL.get(param.opts[0], given)


def values() -> Iterator[Attack]:
    """Every option and argument of every scenario with every value."""
    for line, options in lines():
        for param in options:
            for value in () if is_flag(param) else fitting(param):
                label = f"{param.opts[0]} {value[:SHOWN]!r}"
                yield Attack(scenario=line.scenario, label=label, arguments=line.with_option(param, value))
        for place in line.arguments:
            for value in VALUES:
                label = f"{line.given[place]} {value[:SHOWN]!r}"
                yield Attack(scenario=line.scenario, label=label, arguments=line.replaced(place, value))


def pairs() -> Iterator[Attack]:
    """Every pair of options of every scenario, with usual values; and every option twice."""
    for line, options in lines():
        for one, other in [*combinations(options, 2), *((param, param) for param in options)]:
            words = (*words_of(one, usual(one)), *words_of(other, usual(other)))
            yield Attack(scenario=line.scenario, label=" ".join(words), arguments=(*line.command, *line.given, *words))


def lines() -> Iterator[tuple[Line, list[click.Option]]]:
    """The line of each scenario with the options of its command."""
    there = dict(commands(tinyq))
    for scenario in SCENARIOS:
        command = there[scenario.command]
        yield Line.of(scenario, command), [param for param in command.params if isinstance(param, click.Option)]
