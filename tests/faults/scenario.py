"""What the matrix knows of a command: a command line that works, on inputs made on the fly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_IN = re.compile(r"\{in\}/([\w.-]+)")
_OUT = re.compile(r"\{out\}/([\w.-]+)")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command line of one command, with all that it writes.

    `line` is what follows `tinyq`: `{in}/NAME` is an input that `materials.py` makes, `{out}/NAME` a file or folder that the
    command writes. What a run without a fault writes, prints and returns is what counts as complete.
    """

    command: str
    """The command's name, of a command in a group all names: `search report`."""
    line: str
    variant: str = ""
    """What tells this scenario from others of the command."""
    llama: str = ""
    """What needs llama.cpp in it, in a word that the error names; empty where the command works without llama-cpp-python."""
    proves: bool = False
    """Proves its output with llama.cpp where that is there, and else ends well, with a report that says so."""
    changes: tuple[str, ...] = ()
    """Inputs that it may change, such as a file that is changed in place."""
    recovery: tuple[str, ...] = ()
    """The lines that complete or undo what a kill interrupted, and then use it; by default the same again with --force."""
    tells: bool = False
    """Says what is wrong with an input in its report, and ends well."""
    containers: tuple[str, ...] = ()
    """Outputs that are folders of several outputs, each of which is complete by itself; the folder may be there already."""
    progress: tuple[str, ...] = ()
    """Beginnings of lines on stderr that say how far it is."""
    varies: tuple[str, ...] = ()
    """Outputs that differ from run to run, such as a measured time, of which only the form is compared; "stdout" is one too."""
    code: int = 0
    """The exit code without a fault."""
    takes_force: bool = True
    """Whether it has --force; a command whose outputs get new names each time has not."""
    setup: str = ""
    """Python statements before the command begins, which make it smaller where no option does."""
    cost: Literal["quick", "slow", "long"] = "quick"
    """About a second, several (it loads torch), or half a minute: the dearer, the fewer tries."""

    def __post_init__(self) -> None:
        """Hold the line to the command's name."""
        if not self.line.startswith(self.command):
            raise ValueError(f"{self.line!r} does not begin with {self.command!r}")

    @property
    def name(self) -> str:
        """The scenario's name in commands and tables."""
        return f"{self.command} {self.variant}".strip()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(dict.fromkeys(_IN.findall(self.line)))

    @property
    def single(self) -> tuple[str, ...]:
        """Names of the outputs that are one file or one whole folder each."""
        return tuple(name for name in self.outputs if name not in self.containers)

    def tries(self, most: int) -> int:
        """How many of `most` tries this scenario is worth."""
        return {"quick": most, "slow": max(most // 3, 1), "long": min(most, 2)}[self.cost]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that the command line gives; a command may write others beside them."""
        return tuple(dict.fromkeys(_OUT.findall(self.line)))
