"""Intermediate files outside of the output's folder: where they lie, and how they vanish, also after SIGKILL."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gguf_tools import signals
from gguf_tools.formats.temporary import create_file, folder_lock, remove_leftovers, scratch_folder

ADVICE = "set TMPDIR to a folder with room"
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


@contextlib.contextmanager
def working_folder(name: str, inside: Path | None = None) -> Iterator[Path]:
    """A folder for intermediate files of this run, in the system's temporary folder or `inside` another.

    It is removed at the end, or, after a kill, by the next run that makes one of this name. Raises OutputError.
    """
    with scratch_folder((inside or temporary_folder()) / name, alone=False, advice=ADVICE) as folder:
        yield folder


def unnamed_file(name: str, inside: Path | None = None) -> BinaryIO:
    """A file without a name in the system's temporary folder or `inside` another; it vanishes with its process. Raises OSError.

    Where the file system makes none (O_TMPFILE, which NFS lacks), it has a temporary name made of `name` for a moment. If the
    process is killed then, the next call with this name removes the file.
    """
    folder = inside or temporary_folder()
    if flag := getattr(os, "O_TMPFILE", 0):
        with contextlib.suppress(OSError):
            return os.fdopen(os.open(folder, os.O_RDWR | os.O_CLOEXEC | flag, 0o600), "w+b")
    with folder_lock(folder):
        remove_leftovers(folder / name)
        with signals.held():
            stream = create_file(folder / name, 0o600)
            os.unlink(stream.name)
    return stream
