"""Several files that appear together: what a crash interrupts, the next run that writes there completes.

When all temporary files are complete and on the disk, a journal beside the first file says which becomes which; then they are
renamed, and the journal is removed. So a journal that is left over belongs to a set of which some files are renamed already,
and the others can be: that needs no room and no data.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from gguf_tools.errors import OutputError
from gguf_tools.formats.temporary import create_file, stem, temporaries

MAX_JOURNAL = 1 << 26
"""Bytes of the longest journal that is read: 65,535 files, each with two long names."""


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries (which makes a rename durable), to the disk; OSError where that cannot be done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_path(first: Path) -> Path:
    """Where the journal of the set lies whose first file is `first`."""
    return first.with_name(f".{stem(first.name)}.tinyq-commit")


def begin(moves: Sequence[tuple[Path, Path]]) -> None:
    """Write the journal, whole or not at all: from here on the set is completed, if not by this run then by the next.

    `moves` are (temporary file, name that it gets), all in one folder; nothing has moved where this raises OSError.
    """
    first = moves[0][1]
    with create_file(first) as stream:
        temporary = Path(os.fsdecode(stream.name))
        try:
            stream.write(json.dumps([[a.name, b.name] for a, b in moves]).encode())
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, commit_path(first))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync(first.parent)


def finish(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename what is not renamed yet, and remove the journal. The first file appears last: without it the others are no model."""
    for temporary, path in reversed(moves):
        if os.path.lexists(temporary):
            os.replace(temporary, path)
    commit_path(moves[0][1]).unlink(missing_ok=True)
    sync(moves[0][1].parent)


def settle(paths: Sequence[Path]) -> bool:
    """Complete a set of these files that a crash interrupted; whether there was one.

    Call it under `folder_lock`, when no other run is writing the set. Raises OutputError for a journal that tinyq did not write.
    """
    journal = commit_path(paths[0])
    if not os.path.lexists(journal):
        return False
    allowed = {path.name: {other.name for other, _ in temporaries(path)} for path in paths}
    moves = [(journal.with_name(a), journal.with_name(b)) for a, b in _read(journal)]
    for temporary, path in moves:
        # A stranger's journal must not move anything else.
        there = os.path.lexists(temporary)
        planted = there and (temporary.name not in allowed.get(path.name, ()) or not _regular(temporary))
        if planted or path.name not in allowed or path.is_dir():
            raise OutputError(f"{journal}: is not of the files that lie beside it; remove it")
    if moves:
        finish(moves)
    else:
        journal.unlink()
    return True


def _regular(path: Path) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode)


def _read(journal: Path) -> list[tuple[str, str]]:
    """The moves (temporary name, final name) of a journal; OutputError for a file that is no journal."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError("no regular file")
            data = json.loads(stream.read(MAX_JOURNAL))
        moves = [(a, b) for a, b in data]
        if not all(isinstance(name, str) and name == Path(name).name for move in moves for name in move):
            raise ValueError("names that are not plain")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise OutputError(f"{journal}: is not a record that tinyq wrote ({error}); remove it") from error
    return moves
