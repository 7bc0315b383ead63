"""Outputs of tests: a file, and what lies in a folder."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.formats.output import atomic_output

MARK = "0123456789abcdef"
"""The random part of a temporary name."""
MARKS = ("config.json",)


def files(folder: Path) -> list[str]:
    """The names in a folder, temporary ones too."""
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    """Write an output."""
    with atomic_output(path, force=force) as stream:
        stream.write(data)
