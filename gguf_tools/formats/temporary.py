"""Temporary files and folders in the output's folder: unpredictable names, locked as long as their process runs.

A name is `.OUTPUT.RANDOM.tmp`; if OUTPUT is too long for the file system, it is shortened and a digest appended. The file is
created with O_EXCL and O_NOFOLLOW and locked (`flock`) until it is closed, by the kernel if the process is killed. So a file
with such a name and no lock was left by a killed run. Process ids are not used: containers that share a folder reuse them.
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

from gguf_tools import signals
from gguf_tools.errors import OutputError

MAX_NAME = 255
"""Most bytes of a file name on Linux and macOS."""
_RANDOM = 8
"""Random bytes in a temporary name, written in hexadecimal."""
_ROOM = len(f"..{'0' * 2 * _RANDOM}.tmp")
_FOLDER_LOCK_SECONDS = 10.0


def stem(name: str) -> str:
    """An output's name as used in temporary names: shortened to fit `MAX_NAME`, and different for each output."""
    raw = os.fsencode(name)
    if len(raw) + _ROOM <= MAX_NAME:
        return name
    mark = hashlib.sha256(raw).hexdigest()[:16]
    # The cut may fall inside a multi-byte character, whose remaining bytes are dropped.
    return raw[: MAX_NAME - _ROOM - len(mark) - 1].decode("utf-8", errors="ignore") + "~" + mark


def random_path(path: Path, suffix: str = "tmp") -> Path:
    """An unpredictable temporary path in the folder of `path`."""
    return path.with_name(f".{stem(path.name)}.{secrets.token_hex(_RANDOM)}.{suffix}")


def temporaries(path: Path) -> list[tuple[Path, str]]:
    """The paths with a temporary name of this output, each with its suffix (tmp, old), of running and of killed runs."""
    pattern = _pattern(path)
    found = ((other, pattern.fullmatch(other.name)) for other in sorted(path.parent.iterdir()))
    return [(other, match[1]) for other, match in found if match]


def is_temporary(name: str, path: Path) -> bool:
    """Whether a temporary file of the output `path` may have this name, whether it exists or not."""
    return _pattern(path).fullmatch(name) is not None


def _pattern(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(f".{stem(path.name)}.") + rf"[0-9a-f]{{{2 * _RANDOM}}}\.(tmp|old)")


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold this folder's lock, which runs take while they start or finish an output in it.

    If the file system has no locks, or another process keeps this one for 10 seconds, the block runs without it.
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
    """Whether this process has the lock, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def create_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """A new temporary file for the output `path`, open for reading and writing, and locked. Raises OSError."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, mode)

    stream = open(random_path(path), "x+b", opener=opener)  # noqa: SIM115
    _locked(stream.fileno())
    return stream


def write_journal(path: Path, data: bytes, output: Path) -> None:
    """Write what the next run reads to `path`, under a temporary name of `output` first; the folder is not flushed.

    Its owner can read it, whatever the umask. Raises OSError, such as for a full disk; then nothing has begun.
    """
    with create_file(output) as stream:
        temporary = Path(os.fsdecode(stream.name))
        try:
            _let_owner_read(stream)
            view = memoryview(data)
            while view:
                view = view[os.write(stream.fileno(), view) :]
            os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _let_owner_read(stream: BinaryIO) -> None:
    mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
    if mode & 0o600 != 0o600:
        with contextlib.suppress(OSError):  # a file system without modes
            os.fchmod(stream.fileno(), mode | 0o600)


def is_ours(temporary: Path, descriptor: int) -> bool:
    """Whether the path `temporary` still refers to the file open as `descriptor`."""
    try:
        return os.path.samestat(os.lstat(temporary), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def create_folder(path: Path, mode: int = 0o777) -> tuple[Path, int]:
    """A new temporary folder for the output `path`, and the descriptor that holds its lock. Raises OSError."""
    folder = random_path(path)
    folder.mkdir(mode)
    try:
        return folder, lock_folder(folder)
    except OSError:
        folder.rmdir()
        raise


def lock_folder(folder: Path) -> int:
    """Lock a folder; returns the descriptor, which releases the lock when closed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    _locked(descriptor)
    return descriptor


@contextlib.contextmanager
def scratch_folder(path: Path, *, alone: bool = True, advice: str = "choose another path") -> Iterator[Path]:
    """A folder for intermediate files, in the folder of the output `path`; removed at the end, or by the next run.

    It is a subfolder of the locked temporary folder and not locked itself, so that outputs can be written in it
    (`folder_lock`). Raises OutputError, which ends with `advice`, if it cannot be created, or if it is to be `alone` and
    another run has one.
    """
    with contextlib.ExitStack() as made:
        try:
            with folder_lock(path.parent):
                if alone:
                    refuse_second(path)
                remove_leftovers(path)
                with signals.held():
                    folder, lock = create_folder(path, 0o700)
                    made.callback(_remove_folder, folder, lock)
            inside = folder / "files"
            inside.mkdir()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot create a temporary folder in {path.parent} ({error.strerror}); {advice}"
            ) from error
        yield inside


def _remove_folder(folder: Path, lock: int) -> None:
    with signals.held():
        remove_tree(folder)
        os.close(lock)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all in it, as far as possible; what fails once, such as on a busy file server, is tried again."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return


def refuse_second(path: Path) -> None:
    """Raise OutputError if another run is writing the same output. Call it under `folder_lock`."""
    if any(_held(other) for other, _ in temporaries(path)):
        raise OutputError(f"{path}: another process is writing it; wait until it ends, or choose another name")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed runs to the output `path`. Call it under `folder_lock`.

    A folder that was moved aside to be replaced is moved back if nothing has replaced it.
    """
    for other, suffix in temporaries(path):
        if _held(other) is not False:
            continue
        if suffix == "old" and not os.path.lexists(path):
            other.rename(path)
        elif other.is_dir():
            remove_tree(other)
        else:
            other.unlink(missing_ok=True)


def _held(path: Path) -> bool | None:
    """Whether a run holds the lock of this file or folder; None if that is unknown, or it is neither file nor folder."""
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return None
        # Some file systems (NFS) lock only files that are open for writing; folders cannot be opened so.
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
