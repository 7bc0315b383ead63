"""The files that this command has opened to read: none of them may be replaced by a report.

Before it begins, a command checks its outputs against the inputs that its options name. Others become known only when files are
read: the donors of a recipe, the source that a GGUF records.
"""

from __future__ import annotations

import os
from pathlib import Path

_KEYS: set[tuple[int, int]] = set()


def note_opened(state: os.stat_result) -> None:
    """Remember a file that is read, by its device and inode."""
    _KEYS.add((state.st_dev, state.st_ino))


def was_opened(path: Path) -> bool:
    """Whether the file at `path`, by any name, has been read since `forget_opened`."""
    try:
        state = os.stat(path)
    except OSError:
        return False
    return (state.st_dev, state.st_ino) in _KEYS


def forget_opened() -> None:
    """A command begins: nothing has been read."""
    _KEYS.clear()
