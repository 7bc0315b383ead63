"""The page `docs/faults.md`: the table of tried, survived and lost, read back where only a part is run again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.catalogue import FAULTS
from tests.faults.fault import Fault
from tests.faults.matrix import Cell

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
HEAD = """# Faults

Every command under every fault: a cell of the table says how often the fault was tried on the command, how often the command
survived, and how often something was lost (tried/survived/lost). A dash is a fault that cannot happen to the command, such as
another file in the place of an input where there is none; a question mark is one that has not been tried on it. {total}
`make faults` runs all and writes this page; `make test` runs a sample.

Each try runs `tinyq` as a user does, in a process and a folder of its own (`demo` with two types and short answers). Where a
moment has to be chosen (which write fails, when a signal arrives) the choice is drawn with a fixed seed, so that the same command
tries the same again; at every second write or signal the outputs exist already and `--force` is given. The verdict is computed
from what is found afterwards. A command survived if

- its exit code is one of those that the fault allows, and no process of it is left;
- an error is one line on stderr, which names the input that could not be read or the path that cannot be an output, and there is
  never a traceback;
- inputs are what they were, byte for byte;
- every output is absent, or the old one, or complete: the same bytes as without a fault, or the same form where it varies from
  run to run; a split set is all old or all new, and what the error line says of outputs is true;
- nothing else is left, in the outputs' folder, in `TMPDIR` or in the home. After SIGKILL the next run, with `--force`, clears
  away or completes what is left, and is judged; a change in place is completed by `--in-place`.

A command that is new declares how it is invoked in `tests/faults/scenarios.py`; a test fails without that.

"""


NEVER, UNTRIED = "–", "?"


@dataclass(frozen=True)
class Count:
    """Tries, and how many of them were lost; without tries the fault cannot happen."""

    tried: int = 0
    lost: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.tried + other.tried, self.lost + other.lost)

    def __str__(self) -> str:
        if not self.tried:
            return NEVER
        text = f"{self.tried}/{self.tried - self.lost}/{self.lost}"
        return f"**{text}**" if self.lost else text


Counts = Mapping[tuple[str, str], Count]
"""(fault, command) → count; what has not been tried is not in it."""


def counted(cells: Iterable[Cell]) -> dict[tuple[str, str], Count]:
    """The counts of cells; scenarios of one command are added up.

    A pair whose tries all ended before the fault came has not been tried.
    """
    counts: dict[tuple[str, str], Count] = {}
    too_early: set[tuple[str, str]] = set()
    for cell in cells:
        key = cell.fault.name, cell.scenario.command
        counts[key] = counts.get(key, Count()) + Count(cell.tried, len(cell.lost))
        if cell.verdicts and not cell.tried:
            too_early.add(key)
    return {key: count for key, count in counts.items() if count.tried or key not in too_early}


def parsed(text: str) -> dict[tuple[str, str], Count]:
    """The counts of a page that was written before."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    counts: dict[tuple[str, str], Count] = {}
    for row in rows[1:]:
        for command, cell in zip(rows[0][1:], row[1:], strict=True):
            match = re.fullmatch(rf"\**(\d+)/\d+/(\d+)\**|{NEVER}", cell)
            if match and row[0] != "all" and command != "all":
                counts[row[0], command] = Count(int(match[1] or 0), int(match[2] or 0))
    return counts


def _cell(count: Count | None) -> str:
    """A cell of the table."""
    return UNTRIED if count is None else str(count)


def _summed(counts: Sequence[Count | None]) -> Count | None:
    """The sum of what was tried; None where nothing was."""
    tried = [count for count in counts if count is not None]
    return sum(tried, Count()) if tried else None


def page(counts: Counts, commands: Sequence[str], faults: Sequence[Fault] = FAULTS) -> str:
    """The whole page."""
    total = sum(counts.values(), Count())
    said = (
        f"In all {total.tried:,} tries, {total.lost:,} lost."
        if total.lost
        else f"In all {total.tried:,} tries; none was lost."
    )
    rows = [["fault", *commands, "all"]]
    for fault in faults:
        row = [counts.get((fault.name, command)) for command in commands]
        rows.append([fault.name, *map(_cell, row), _cell(_summed(row))])
    sums = [_summed([counts.get((fault.name, command)) for fault in faults]) for command in commands]
    rows.append(["all", *map(_cell, sums), _cell(_summed(sums))])
    rows.insert(1, [":---", *["---:"] * (len(commands) + 1)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    listed = "\n".join(
        f'- **{fault.name}**: {fault.about}. `python -m tests.faults --fault "{fault.name}"`' for fault in faults
    )
    ways = (
        "## What each fault is\n\nThe command at the end of a line runs that row again, with `--scenario COMMAND` one cell "
        f"of it, and says what was lost and why.\n\n{listed}\n"
    )
    return f"{HEAD.format(total=said)}{table}\n\n{ways}"
