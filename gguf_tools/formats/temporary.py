"""Temporary files and folders beside an output: random names that nobody can plant, each locked while its run lives.

A name is `.OUTPUT.RANDOM.tmp`, where an OUTPUT too long for the file system is cut and completed by a digest. The file is created
with O_EXCL and O_NOFOLLOW and locked (`flock`) until it is closed, which the kernel sees to when a process is killed. So a
leftover is what bears such a name and is not locked; process ids, which two containers may share, say nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gguf_tools.errors import OutputError

MAX_NAME = 255
"""Bytes of a file's name on Linux and macOS."""
_RANDOM = 8
"""Random bytes of a temporary name; written as twice as many hexadecimal digits."""
_ROOM = len(f"..{'0' * 2 * _RANDOM}.tmp")
_FOLDER_LOCK_SECONDS = 10.0


def stem(name: str) -> str:
    """An output's name as temporary names hold it: short enough to leave them room, and different for each output."""
    raw = os.fsencode(name)
    if len(raw) + _ROOM <= MAX_NAME:
        return name
    mark = hashlib.sha256(raw).hexdigest()[:16]
    # A cut may part a character: what is left of it is dropped.
    return raw[: MAX_NAME - _ROOM - len(mark) - 1].decode("utf-8", errors="ignore") + "~" + mark


def random_path(path: Path, suffix: str = "tmp") -> Path:
    """A temporary name beside `path` that no one can foresee."""
    return path.with_name(f".{stem(path.name)}.{secrets.token_hex(_RANDOM)}.{suffix}")


def temporaries(path: Path) -> list[tuple[Path, str]]:
    """What bears a temporary name of this output, with its suffix (tmp, old): of runs that live or were killed."""
    pattern = re.compile(re.escape(f".{stem(path.name)}.") + rf"[0-9a-f]{{{2 * _RANDOM}}}\.(tmp|old)")
    found = ((other, pattern.fullmatch(other.name)) for other in sorted(path.parent.iterdir()))
    return [(other, match[1]) for other, match in found if match]


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other runs from starting or finishing an output in this folder for a moment.

    Where the file system has no such lock, or a stranger does not give it back, the block runs without it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        end = time.monotonic() + _FOLDER_LOCK_SECONDS
        while not _locked(descriptor) and time.monotonic() < end:
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Whether this process got the lock, or there is none to get."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def create_file(path: Path) -> BinaryIO:
    """A new temporary file for the output `path`, open for reading and writing, and locked; OSError where it cannot be made."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    stream = open(random_path(path), "x+b", opener=opener)  # noqa: SIM115
    _locked(stream.fileno())
    return stream


def is_ours(temporary: Path, descriptor: int) -> bool:
    """Whether the name still leads to what was created under it."""
    try:
        return os.path.samestat(os.lstat(temporary), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def create_folder(path: Path) -> tuple[Path, int]:
    """A new temporary folder for the output `path`, and the descriptor that holds its lock."""
    folder = random_path(path)
    folder.mkdir()
    return folder, lock_folder(folder)


def lock_folder(folder: Path) -> int:
    """Lock a folder of this run; the descriptor, which ends the lock when it is closed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    _locked(descriptor)
    return descriptor


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside the output `path` for what is needed while it is made; removed at the end, or by the next run.

    It lies in the locked folder and is not locked itself, so that outputs can be written in it (`folder_lock`).
    """
    try:
        with folder_lock(path.parent):
            refuse_second(path)
            remove_leftovers(path)
            folder, lock = create_folder(path)
        inside = folder / "files"
        inside.mkdir()
    except OSError as error:
        raise OutputError(f"{path}: no temporary folder could be made beside it ({error.strerror})") from error
    try:
        yield inside
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def refuse_second(path: Path) -> None:
    """Raise OutputError where another run is writing the same output. Call it under `folder_lock`."""
    if any(_held(other) for other, _ in temporaries(path)):
        raise OutputError(f"{path}: another process is writing it now; wait for that, or choose another name")


def remove_leftovers(path: Path) -> None:
    """Remove what killed runs to the output `path` left. Call it under `folder_lock`.

    A folder that was about to be replaced is put back where nothing has taken its place.
    """
    for other, suffix in temporaries(path):
        if _held(other) is not False:
            continue
        if suffix == "old" and not os.path.lexists(path):
            other.rename(path)
        elif other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)


def _held(path: Path) -> bool | None:
    """Whether a run holds the lock of this file or folder; None where that cannot be told, or it is no file that a run made."""
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return None
        # Some file systems lock only what is open for writing, which a folder cannot be.
        descriptor = os.open(path, (os.O_RDWR if stat.S_ISREG(mode) else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
