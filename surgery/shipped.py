"""The recipes that ship with tinyq, each a TOML file in `surgery/recipes/` with its source and its number of layers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"


@cache
def shipped_recipes() -> dict[str, Path]:
    """The files of the recipes by name, in alphabetical order."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
