"""Committing several output files together: if a crash interrupts the renames, the next run to the same outputs completes them.

When all temporary files are complete and flushed, a journal beside the first file lists (temporary name, final name); then
the files are renamed, and the journal is removed. A leftover journal therefore means that all files were complete: renaming
those that still have temporary names finishes the set and needs neither disk space nor data.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from gguf_tools.errors import OutputError
from gguf_tools.formats.temporary import is_temporary, stem, write_journal
from gguf_tools.formats.text_file import load_json

MAX_JOURNAL = 1 << 26
"""Most bytes of a journal: enough for 65,535 files with two long names each."""
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""Errors of `fsync` that mean that the file system does not do it for folders."""


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries (which makes a rename durable), to the disk. Raises OSError if that fails.

    Some file systems (SMB, FUSE) cannot flush a folder, and say so; their renames are as durable as they make them.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def commit_path(first: Path) -> Path:
    """The path of the journal for a set whose first file is `first`."""
    return first.with_name(f".{stem(first.name)}.tinyq-commit")


def begin(moves: Sequence[tuple[Path, Path]]) -> None:
    """Write the journal atomically: from then on this run or a later one completes the set.

    `moves` are (temporary path, final path), all in one folder. If this raises OSError, nothing has been renamed.
    """
    first = moves[0][1]
    write_journal(commit_path(first), json.dumps([[a.name, b.name] for a, b in moves]).encode(), first)
    try:
        sync(first.parent)
    except OSError:
        commit_path(first).unlink(missing_ok=True)
        raise


def finish(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename the files that still have temporary names, and remove the journal.

    The first file is renamed last: the model cannot be opened without it.
    """
    for temporary, path in reversed(moves):
        if os.path.lexists(temporary):
            os.replace(temporary, path)
    commit_path(moves[0][1]).unlink(missing_ok=True)
    sync(moves[0][1].parent)


def settle(paths: Sequence[Path]) -> bool:
    """Complete an interrupted commit of these files, if there is one; returns whether there was.

    Call it under `folder_lock`, when no other run is writing the set. Raises OutputError for a journal that tinyq did not write.
    """
    journal = commit_path(paths[0])
    if not os.path.lexists(journal):
        return False
    outputs = {path.name for path in paths}
    moves = [(journal.with_name(a), journal.with_name(b)) for a, b in _read(journal)]
    for temporary, path in moves:
        # A planted journal must not rename any other file, nor one output to another.
        planted = path.name not in outputs or path.is_dir() or not is_temporary(temporary.name, path)
        if planted or (os.path.lexists(temporary) and not _regular(temporary)):
            raise OutputError(f"{journal}: names files that are not outputs of this command; remove it")
    if moves:
        finish(moves)
    else:
        journal.unlink()
    return True


def _regular(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def _read(journal: Path) -> list[tuple[str, str]]:
    """The (temporary name, final name) pairs of a journal. Raises OutputError if the file is not a journal."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError("not a regular file")
            data = load_json(stream.read(MAX_JOURNAL))
        moves = [(a, b) for a, b in data]
        if not all(isinstance(name, str) and name and name == Path(name).name for move in moves for name in move):
            raise ValueError("an entry is not a plain file name")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(f"{journal}: is not a journal written by tinyq ({error}); remove it") from error
    return moves
