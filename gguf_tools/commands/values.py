"""The types of values of options and arguments that are checked when the command line is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gguf_tools.errors import Bounds


class Number(click.types.FloatParamType):
    """The type of an option with a number in a range, out of which it says what was expected; NaN is in none."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        number = super().convert(value, param, ctx)
        fault = self.bounds.fault(number)
        if fault:
            self.fail(f"it {fault}", param, ctx)
        return float(number)


class FilePath(click.Path):
    """The type of an option or argument with the path of a file or a folder."""

    def __init__(self, *, file_okay: bool = True) -> None:
        """Only folders unless `file_okay`."""
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a usage error for an empty text, which would be the current folder."""
        if value == "":
            self.fail("it is empty; expected a path", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.types.StringParamType):
    """The type of an option whose text must not be empty, because it would then count as not given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, or a usage error."""
        if value == "":
            self.fail("it is empty; give a value, or leave the option out", param, ctx)
        return str(super().convert(value, param, ctx))
