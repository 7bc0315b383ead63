"""Outputs that appear whole or not at all, files and folders, and the one guard of what a command may write.

Everything is written to a temporary name beside the output (`temporary`), flushed to the disk, and renamed; so a full disk,
Ctrl-C or `kill -9` leaves no output under its name. A later run to the same output removes what a killed one left behind.
Files that belong together are renamed together (`commit`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from gguf_tools.errors import OutputError
from gguf_tools.formats import commit
from gguf_tools.formats.temporary import (
    MAX_NAME,
    create_file,
    create_folder,
    folder_lock,
    is_ours,
    lock_folder,
    refuse_second,
    remove_leftovers,
)

Check = Callable[[], None]
"""Called when an output is complete, before it appears: what it raises leaves nothing."""


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path], *, force: bool, folders: Collection[str] = ()
) -> None:
    """Raise OutputError where something of what a command will write may not be written; nothing has been done yet.

    `outputs` are paths by the option or argument that gave them, those in `folders` make a folder. None may be one of the
    `inputs`, lie in another output, or be one, under whatever name or link; and none may exist without `force`.
    """
    read = {key for path in inputs for key in _identities(path)}
    used: dict[tuple[object, ...], str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        mine = _identities(path)
        if mine & read:
            raise OutputError(f"{path}: is what the command reads; give {option} another name")
        (check_folder if option in folders else check_output)(path, force)
        real = Path(os.path.realpath(path))
        other = next((used[key] for key in mine if key in used), None)
        around = next((used[str(parent),] for parent in real.parents if (str(parent),) in used), None)
        if other or around:
            place = "is" if other else "lies in"
            raise OutputError(f"{path}: {place} what {other or around} writes; give {option} another name")
        used |= dict.fromkeys(mine, option)


def _identities(path: Path) -> set[tuple[object, ...]]:
    """What tells that two paths lead to one file, be it by other names, symbolic or hard links, or not there yet."""
    found: set[tuple[object, ...]] = {(os.path.realpath(path),)}
    with contextlib.suppress(OSError):
        state = os.stat(path)
        found.add((state.st_dev, state.st_ino))
    return found


def check_output(path: Path, force: bool) -> None:
    """Raise OutputError where `path` cannot become an output: it exists without `force`, or has no folder to lie in.

    A symbolic link that exists is replaced with `force`, and never followed.
    """
    state = _state(path)
    if state and (stat.S_ISDIR(state.st_mode) or path.is_dir()):
        raise OutputError(f"{path}: is a folder; give the name of the file to write")
    if state and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if state and path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file, which a new file would replace; give another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")


def _state(path: Path) -> os.stat_result | None:
    if len(os.fsencode(path.name)) > MAX_NAME:
        raise OutputError(f"{path}: the name is longer than {MAX_NAME} bytes, which no file system holds; shorten it")
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


@contextlib.contextmanager
def atomic_output(path: Path, *, force: bool = False, size: int = 0, check: Check | None = None) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and vanishes otherwise.

    `size` is what will be written, in bytes, if known: OutputError before the start where the disk has less room. Raises
    OutputError too where another process is writing the same output.
    """
    with atomic_outputs([(path, size)], force=force, check=check) as (stream,):
        yield stream


@contextlib.contextmanager
def atomic_outputs(
    outputs: Sequence[tuple[Path, int]], *, force: bool = False, check: Check | None = None
) -> Iterator[tuple[BinaryIO, ...]]:
    """Binary files of one folder that appear together, as `atomic_output` has one; `outputs` are (path, bytes)."""
    paths = [path for path, _ in outputs]
    opened = contextlib.ExitStack()
    moves: list[tuple[Path, Path]] = []
    streams: list[BinaryIO] = []
    begun = False
    try:
        with _reported(paths[0]), folder_lock(paths[0].parent):
            settle(paths)
            for path in paths:
                check_output(path, force)
            for path in paths:
                streams.append(opened.enter_context(create_file(path)))
                moves.append((Path(os.fsdecode(streams[-1].name)), path))
        require_room(paths[0], sum(size for _, size in outputs))
        with _reported(paths[0]):
            yield tuple(streams)
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
        if check:
            check()
        with _reported(paths[0]), folder_lock(paths[0].parent):
            # Another process may have made the output meanwhile.
            for stream, (temporary, path) in zip(streams, moves, strict=True):
                check_output(path, force)
                if not is_ours(temporary, stream.fileno()):
                    raise OutputError(f"{path}: its temporary file {temporary.name} was taken away; begin again")
            if len(moves) > 1:
                commit.begin(moves)
                begun = True
                _finish(moves)
            else:
                os.replace(*moves[0])
                with contextlib.suppress(OSError):  # not every file system lets a folder be synced
                    commit.sync(paths[0].parent)
    finally:
        if begun:
            # Ctrl-C between two renames; where they fail, the journal stays for the next run.
            with contextlib.suppress(OSError):
                commit.finish(moves)
        else:
            for stream, (temporary, _) in zip(streams, moves, strict=False):
                with contextlib.suppress(OSError):
                    if is_ours(temporary, stream.fileno()):
                        temporary.unlink()
        with contextlib.suppress(OSError):  # a full disk is met once more by what is still buffered
            opened.close()


def _finish(moves: Sequence[tuple[Path, Path]]) -> None:
    try:
        commit.finish(moves)
    except OSError as error:
        raise OutputError(
            f"{moves[0][1]}: all is written, but not all could be renamed ({error.strerror}); run the same again with --force"
        ) from error


def settle(paths: Sequence[Path]) -> None:
    """Complete or clear away what killed runs to these files of one folder left; OutputError where another run is writing them.

    Call it under `folder_lock`.
    """
    if not paths[0].parent.is_dir():
        return
    for path in paths:
        refuse_second(path)
    if len(paths) > 1:
        commit.settle(paths)
    for path in paths:
        remove_leftovers(path)


def require_room(path: Path, size: int) -> None:
    """Raise OutputError where the disk that `path` lies on has less than `size` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(f"{path}: needs {size:,} bytes, but the disk has {free:,} free; make room or write elsewhere")


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"{path}: could not be written ({reason}); nothing was left behind") from error


@contextlib.contextmanager
def atomic_folder(path: Path, *, force: bool = False, size: int = 0, check: Check | None = None) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends without an error, and vanishes otherwise.

    Where `path` is a symbolic link to a folder, that folder is replaced and the link stays.
    """
    check_folder(path, force)
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    old: Path | None = None
    locks: list[int] = []
    try:
        with _reported(path), folder_lock(target.parent):
            settle([target])
            check_folder(path, force)
            temporary, lock = create_folder(target)
            locks.append(lock)
        require_room(target, size)
        with _reported(path):
            yield temporary
            for file in temporary.iterdir():
                commit.sync(file)
            commit.sync(temporary)
        if check:
            check()
        with _reported(path), folder_lock(target.parent):
            check_folder(path, force)
            if target.exists():
                locks.append(lock_folder(target))
                old = temporary.with_suffix(".old")
                target.rename(old)
            temporary.rename(target)
            commit.sync(target.parent)
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        if old and os.path.lexists(old):
            if not os.path.lexists(target):
                old.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        for lock in locks:
            os.close(lock)


def check_folder(path: Path, force: bool) -> None:
    """Raise OutputError where `path` cannot become an output folder."""
    _state(path)
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
