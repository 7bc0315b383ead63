"""Where the system has temporary files; looked up when tinyq starts, so that this imports little."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_VARIABLES = ("TMPDIR", "TEMP", "TMP")
_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")


def temporary_folder() -> Path:
    """The folder that Python's `tempfile` uses, found without writing. Raises OSError where none can be used.

    `tempfile` itself tries folders by creating a file in them, which stays if the process is killed meanwhile.
    """
    if tempfile.tempdir is None and os.name == "posix":
        given = [value for name in _VARIABLES if (value := os.environ.get(name))]
        tempfile.tempdir = next(filter(_usable, map(_absolute, (*given, *_FOLDERS))), None)
    return Path(tempfile.gettempdir())


def _absolute(folder: str) -> str:
    """The folder's absolute path; as it is where the current folder is gone."""
    try:
        return os.path.abspath(folder)
    except OSError:
        return folder


def _usable(folder: str) -> bool:
    """Whether a file can be created and written in the folder, as far as the system tells."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return False
    # File systems without a fixed number of files (btrfs) report 0 of 0.
    room = state.f_bavail > 0 and (state.f_favail > 0 or state.f_files == 0)
    return room and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
