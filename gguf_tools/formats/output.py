"""Outputs that appear whole or not at all: files and folders.

Everything is written to a temporary name beside the output, flushed to the disk, and renamed; so a full disk, Ctrl-C or
`kill -9` leaves no output under its name. A later run to the same output removes what a killed one left behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gguf_tools.errors import OutputError


def check_output(path: Path, force: bool) -> None:
    """Raise OutputError where `path` cannot become an output: it exists without `force`, or has no folder to lie in."""
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of the file to write")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file, which a new file would replace; give another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")


@contextlib.contextmanager
def atomic_output(path: Path, *, force: bool = False, size: int = 0) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and vanishes otherwise.

    `size` is what will be written, in bytes, if known: OutputError before the start where the disk has less room.
    """
    check_output(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove_leftovers(path)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise OutputError(
                f"{path}: needs {size:,} bytes, but the disk has {free:,} free; make room or write elsewhere"
            )
        with temporary.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # Another process may have made the output meanwhile.
        check_output(path, force)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system lets a folder be synced
            sync(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"{path}: could not be written ({reason}); nothing was left behind") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.tmp")
    for other in path.parent.iterdir():
        match = pattern.fullmatch(other.name)
        if match and not alive(int(match[1])):
            other.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this number runs; what cannot be told counts as running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries (which makes a rename durable), to the disk; OSError where that cannot be done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(path: Path, *, force: bool = False, size: int = 0) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an error, and vanishes otherwise."""
    check_folder(path, force)
    _settle_leftovers(path)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(f"{path}: needs {size:,} bytes, but the disk has {free:,} free; make room or write elsewhere")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        check_folder(path, force)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"{path}: could not be written ({reason}); nothing was left behind") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def check_folder(path: Path, force: bool) -> None:
    """Raise OutputError where `path` cannot become an output folder."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; surgery on a checkpoint makes a folder, give it another name")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if path.exists() and not (path / "config.json").exists() and any(path.iterdir()):
        raise OutputError(
            f"{path}: is a folder without config.json, which --force does not replace; choose another name"
        )
    if not path.resolve().parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")


def _settle_leftovers(path: Path) -> None:
    """Remove what a killed run left, and put back the folder that it was about to replace."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.(tmp|old)")
    for other in path.resolve().parent.iterdir():
        match = pattern.fullmatch(other.name)
        if not match or alive(int(match[1])):
            continue
        if match[2] == "old" and not path.exists():
            other.rename(path)
        else:
            shutil.rmtree(other, ignore_errors=True)
