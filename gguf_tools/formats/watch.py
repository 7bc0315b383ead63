"""Detecting that an input file changed while it was read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import CheckpointError


@dataclass(frozen=True)
class FileState:
    """A file's device, inode, size in bytes and modification time in ns; `found` is None if it does not exist."""

    path: Path
    found: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Watch:
    """The states of files before they are opened; call `check` when all has been read.

    A file rewritten with the same size within the resolution of its modification time is not detected.
    """

    states: tuple[FileState, ...]

    @classmethod
    def over(cls, paths: Iterable[Path]) -> Watch:
        """A watch over these files; folders among the paths are skipped, and their contents are not watched."""
        return cls(tuple(FileState(path, _found(path)) for path in dict.fromkeys(paths) if not path.is_dir()))

    def check(self) -> None:
        """Raise CheckpointError for the first file whose size, modification time or inode differs from the recorded one."""
        for state in self.states:
            now = _found(state.path)
            if now != state.found:
                what = "was removed" if now is None else "appeared" if state.found is None else "changed"
                raise CheckpointError(
                    f"{state.path}: {what} while it was read; run the command again when nothing writes to it any more"
                )


def _found(path: Path) -> tuple[int, int, int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
