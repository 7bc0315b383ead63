"""Atomic outputs, files and folders, and the check of every path that a command will write.

An output is written under a temporary name in the same folder (`temporary`), flushed to the disk, and renamed; so a full disk,
Ctrl-C or `kill -9` leaves no output under its name. The next run to the same output removes the temporary files of a killed
one. Files that belong together are renamed together (`commit`).
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

from gguf_tools import signals
from gguf_tools.errors import OutputError
from gguf_tools.formats import commit
from gguf_tools.formats.temporary import (
    MAX_NAME,
    create_file,
    create_folder,
    folder_lock,
    is_ours,
    is_temporary,
    lock_folder,
    refuse_second,
    remove_leftovers,
    remove_tree,
)

GOLDEN = "golden.json"
"""The file by which a folder of golden values is known."""
Check = Callable[[], None]
"""Called when an output is complete but not yet renamed; if it raises, the output is discarded."""


def check_outputs(
    outputs: Mapping[str, Path | None],
    inputs: Iterable[Path],
    *,
    force: bool,
    folders: Mapping[str, Collection[str]] = {},
) -> None:
    """Raise OutputError if one of a command's outputs may not be written; call it before any work.

    `outputs` maps the option or argument to its path; for options in `folders` the output is a folder, known by files of these
    names (`marks` of `check_folder`). An output must not be an input or another output (by any name or link), nor contain an
    input, nor lie inside another output, nor exist unless `force`.
    """
    inputs = tuple(inputs)
    read = {key for path in inputs for key in _identities(path)}
    # Of an input that is a link, those of the link and of what it leads to.
    around_inputs = {folder: path for path in inputs for folder in (*_folders(path.parent), *_folders(path))}
    used: dict[tuple[object, ...], str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        mine = _identities(path)
        if mine & read:
            raise OutputError(f"{path}: is also an input of this command; give {option} another path")
        real = Path(os.path.realpath(path))
        if option in folders:
            check_folder(path, force, folders[option])
            if real in around_inputs:
                raise OutputError(f"{path}: contains the input {around_inputs[real]}; give {option} another path")
        else:
            check_output(path, force)
        other = next((used[key] for key in mine if key in used), None)
        around = next((used[str(parent),] for parent in real.parents if (str(parent),) in used), None)
        if other or around:
            place = "is also the output" if other else "is inside the output"
            raise OutputError(f"{path}: {place} of {other or around}; give {option} another path")
        used |= dict.fromkeys(mine, option)


def _identities(path: Path) -> set[tuple[object, ...]]:
    """Keys by which two paths to the same file are recognised: the resolved path, and device and inode if it exists."""
    found: set[tuple[object, ...]] = {(os.path.realpath(path),)}
    with contextlib.suppress(OSError):
        state = os.stat(path)
        found.add((state.st_dev, state.st_ino))
    return found


def _folders(path: Path) -> tuple[Path, ...]:
    """A path with its links resolved, and all folders that it lies in."""
    real = Path(os.path.realpath(path))
    return (real, *real.parents)


def check_output(path: Path, force: bool) -> None:
    """Raise OutputError if `path` cannot be written as a file: it exists and not `force`, or its folder does not exist.

    With `force` an existing symbolic link is replaced, never followed.
    """
    state = _state(path)
    if state and (stat.S_ISDIR(state.st_mode) or path.is_dir()):
        raise OutputError(f"{path}: is a folder; expected a file; give the path of the file to write")
    if state and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    if state and path.exists() and not path.is_file():
        raise OutputError(f"{path}: is not a regular file; choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")


def _state(path: Path) -> os.stat_result | None:
    if len(os.fsencode(path.name)) > MAX_NAME:
        raise OutputError(
            f"{path}: the name has more than {MAX_NAME} bytes, the most that file systems allow; shorten it"
        )
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another path") from error


@contextlib.contextmanager
def atomic_output(path: Path, *, force: bool = False, size: int = 0, check: Check | None = None) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and is removed otherwise.

    `size` is the number of bytes that will be written, if known. Raises OutputError at the start if the disk has less free
    space or another process is writing the same output.
    """
    with atomic_outputs([(path, size)], force=force, check=check) as (stream,):
        yield stream


@contextlib.contextmanager
def atomic_outputs(
    outputs: Sequence[tuple[Path, int]], *, force: bool = False, check: Check | None = None
) -> Iterator[tuple[BinaryIO, ...]]:
    """Like `atomic_output` for several files in one folder, which appear together; `outputs` are (path, size in bytes)."""
    paths = [path for path, _ in outputs]
    opened = contextlib.ExitStack()
    moves: list[tuple[Path, Path]] = []
    streams: list[BinaryIO] = []
    begun = False
    try:
        with _reported(*paths), folder_lock(paths[0].parent):
            settle(paths)
            for path in paths:
                check_output(path, force)
            with signals.held():
                for path in paths:
                    streams.append(opened.enter_context(create_file(path)))
                    moves.append((Path(os.fsdecode(streams[-1].name)), path))
        require_room(paths[0], sum(size for _, size in outputs))
        with _reported(*paths):
            yield tuple(streams)
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
        if check:
            check()
        with _reported(*paths), folder_lock(paths[0].parent):
            # Another process may have created the output in the meantime.
            for stream, (temporary, path) in zip(streams, moves, strict=True):
                check_output(path, force)
                if not is_ours(temporary, stream.fileno()):
                    raise OutputError(f"{path}: its temporary file {temporary.name} was removed; run the command again")
            with signals.held():
                if len(moves) > 1:
                    commit.begin(moves)
                    begun = True
                    _finish(moves)
                else:
                    os.replace(*moves[0])
                for path in paths:
                    signals.wrote(path)
            if len(moves) == 1:
                with contextlib.suppress(OSError):  # not every file system lets a folder be synced
                    commit.sync(paths[0].parent)
    finally:
        with signals.held():
            _clear(moves, streams, begun)
            with contextlib.suppress(OSError):  # flushing what is still buffered fails again on a full disk
                opened.close()


def _clear(moves: Sequence[tuple[Path, Path]], streams: Sequence[BinaryIO], begun: bool) -> None:
    """Remove the temporary files that are left, or complete the set that is `begun`."""
    if begun:
        # If this fails, the journal stays for the next run.
        with contextlib.suppress(OSError):
            commit.finish(moves)
        return
    for stream, (temporary, _) in zip(streams, moves, strict=False):
        with contextlib.suppress(OSError):
            if is_ours(temporary, stream.fileno()):
                temporary.unlink()


def _finish(moves: Sequence[tuple[Path, Path]]) -> None:
    try:
        commit.finish(moves)
    except OSError as error:
        raise OutputError(
            f"{moves[0][1]}: written, but not all files could be renamed ({error.strerror}); run the command again with --force"
        ) from error


def settle(paths: Sequence[Path]) -> None:
    """Complete an interrupted commit of these files, and remove temporary files of killed runs; all lie in one folder.

    Call it under `folder_lock`. Raises OutputError if another run is writing one of them.
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
    """Raise OutputError if the file system of `path` has less than `size` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(f"{path}: needs {size:,} bytes, but the disk has {free:,} free; free some or write elsewhere")


def check_set(paths: Sequence[Path], inputs: Iterable[Path], size: int, *, force: bool) -> None:
    """Raise OutputError if files that belong together cannot be written, or the disk has no room for their `size` bytes.

    None may be one of `inputs`; `paths` may have a single one. If an earlier run was interrupted while it renamed the
    finished files of the set, the renaming is completed first.
    """
    if len(paths) > 1 and paths[0].parent.is_dir():
        with folder_lock(paths[0].parent):
            settle(paths)
    parts = {f"OUT (part {n})" if len(paths) > 1 else "OUT": path for n, path in enumerate(paths, 1)}
    check_outputs(parts, inputs, force=force)
    require_room(paths[0], size)


@contextlib.contextmanager
def _reported(*outputs: Path) -> Iterator[None]:
    """Turn the OSErrors of writing outputs, all in one folder, into OutputErrors; those that name another file, such as an input,
    stay."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if isinstance(named, str | bytes) and not _is_part(Path(os.fsdecode(named)), outputs):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OutputError(f"{outputs[0]}: could not be written ({reason}); nothing was left behind") from error


def _is_part(file: Path, outputs: Sequence[Path]) -> bool:
    """Whether `file` is an output, their folder, or lies in an output or in what stands for it until it is complete."""
    places = [place for path in outputs for place in (path, Path(os.path.realpath(path)))]
    around = (file, *file.parents)
    return any(
        place in around or file == place.parent or any(is_temporary(one.name, place) for one in around)
        for place in places
    )


@contextlib.contextmanager
def atomic_folder(
    path: Path, *, marks: Collection[str], force: bool = False, size: int = 0, check: Check | None = None
) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error, and is removed otherwise.

    If `path` is a symbolic link to a folder, that folder is replaced and the link stays. `marks` are those of `check_folder`;
    `size` and the errors are those of `atomic_output`.
    """
    check_folder(path, force, marks)
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    old: Path | None = None
    locks: list[int] = []
    try:
        with _reported(path), folder_lock(target.parent):
            settle([target])
            check_folder(path, force, marks)
            with signals.held():
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
            check_folder(path, force, marks)
            with signals.held():
                if target.exists():
                    locks.append(lock_folder(target))
                    old = temporary.with_suffix(".old")
                    target.rename(old)
                temporary.rename(target)
                signals.wrote(path)
            with contextlib.suppress(OSError):
                commit.sync(target.parent)
    finally:
        with signals.held():
            if temporary:
                remove_tree(temporary)
            if old and os.path.lexists(old):
                if not os.path.lexists(target):
                    old.rename(target)
                remove_tree(old)
            for lock in locks:
                os.close(lock)


def check_folder(path: Path, force: bool, marks: Collection[str]) -> None:
    """Raise OutputError if `path` cannot be written as a folder.

    With `force` a folder is replaced only if it is empty, or has one of the files `marks`, which say what it holds, and no
    subfolder: what lies deeper is not tinyq's, but for golden values of several models, which have a folder each.
    """
    _state(path)
    if path.is_symlink() and not path.exists():
        raise OutputError(f"{path}: is a symbolic link to {os.readlink(path)}, which does not exist; remove the link")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file, but a folder is written; choose another name")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; choose another name or overwrite it with --force")
    inside = sorted(path.iterdir()) if path.exists() else []
    if inside and not any((path / mark).exists() for mark in marks):
        raise OutputError(
            f"{path}: is a folder without {' or '.join(marks)}, and --force replaces only such folders; choose another name"
        )
    deeper = [entry for entry in inside if entry.is_dir()]
    if GOLDEN in marks:
        deeper = [entry for entry in deeper if not (entry / GOLDEN).exists()]
    if deeper:
        raise OutputError(
            f"{path}: has the subfolder {deeper[0].name}, and --force replaces only folders without; move it, or choose another "
            "name"
        )
    if not path.resolve().parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
