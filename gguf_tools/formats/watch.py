"""Whether files stay what they were while they are read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import CheckpointError


@dataclass(frozen=True)
class FileState:
    """What tells a file from another under its name, or from itself when it was written to; None where it is not there."""

    path: Path
    found: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Watch:
    """The states of files before they are opened; `check`, called when all is read, compares them.

    A file that is rewritten within the resolution of its modification time, to the same size, goes unnoticed.
    """

    states: tuple[FileState, ...]

    @classmethod
    def over(cls, paths: Iterable[Path]) -> Watch:
        """A watch over these files; folders among them are not watched, only what is named."""
        return cls(tuple(FileState(path, _found(path)) for path in dict.fromkeys(paths) if not path.is_dir()))

    def check(self) -> None:
        """Raise CheckpointError for the first file whose size, modification time or inode is another."""
        for state in self.states:
            now = _found(state.path)
            if now != state.found:
                what = "was removed" if now is None else "appeared" if state.found is None else "changed"
                raise CheckpointError(
                    f"{state.path}: {what} while it was read; begin again when nothing writes to it any more"
                )


def _found(path: Path) -> tuple[int, int, int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
