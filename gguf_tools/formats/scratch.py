"""Intermediate files outside of the output's folder: where they lie, and how they vanish, also after SIGKILL."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gguf_tools import signals
from gguf_tools.formats.temporary import create_file, folder_lock, remove_leftovers, scratch_folder
from gguf_tools.formats.temporary_folder import temporary_folder

ADVICE = "set TMPDIR to a folder with room"


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
