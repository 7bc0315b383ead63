"""Changing bytes of a file in place so that an interrupted change can always be completed or undone.

The change is first written to a journal in the same folder and flushed to the disk; then the file is changed and flushed, and
the journal is renamed to an undo record. A leftover journal means that a change was interrupted: readers refuse the file
(`refuse_interrupted`), and commands that may write it complete the change first (`recover`, `change`, `undo`). A lock on the
file, released when its process ends, prevents two changes at once.

A change that makes the file longer or shorter at its start writes a new file that replaces it (`rewrite`); its undo record has a
single patch of two lengths, and undoing it rewrites the file again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_tools import signals
from gguf_tools.errors import CheckpointError, InputError, OutputError
from gguf_tools.formats.commit import sync
from gguf_tools.formats.copying import copy_range
from gguf_tools.formats.data_file import DataFile
from gguf_tools.formats.output import atomic_output
from gguf_tools.formats.temporary import remove_leftovers, temporaries, write_journal
from gguf_tools.formats.text_file import Kind, load_json, read_bytes
from gguf_tools.progress import ByteProgress

GAP = 64
"""Changes separated by at least this many equal bytes are written as two patches."""


@dataclass(frozen=True)
class Patch:
    """The bytes at `offset` change from `old` to `new`, both of the same length unless the file was rewritten."""

    offset: int
    old: bytes
    new: bytes

    @property
    def reversed(self) -> Patch:
        """The patch that undoes this one."""
        return Patch(self.offset, self.new, self.old)


def differences(old: bytes, new: bytes) -> tuple[Patch, ...]:
    """The patches that turn `old` into `new` (such as headers, of the same length), merged if less than `GAP` bytes apart."""
    places = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    if not places.size:
        return ()
    breaks = np.flatnonzero(np.diff(places) > GAP)
    starts = [int(places[0]), *(int(places[n + 1]) for n in breaks)]
    stops = [*(int(places[n]) + 1 for n in breaks), int(places[-1]) + 1]
    return tuple(Patch(a, old[a:b], new[a:b]) for a, b in zip(starts, stops, strict=True))


@dataclass(frozen=True)
class Record:
    """A change to a file of `size` bytes; `note` describes it, `undoes` says whether it undoes the last change."""

    size: int
    patches: tuple[Patch, ...]
    note: str
    undoes: bool = False

    @property
    def rewrites(self) -> Patch | None:
        """The change of a file that was written anew with another start, None for a change in place."""
        return next((patch for patch in self.patches if len(patch.old) != len(patch.new)), None)

    def packed(self) -> bytes:
        """The record as JSON, as stored in the journal."""
        patches = [[patch.offset, patch.old.hex(), patch.new.hex()] for patch in self.patches]
        return json.dumps({"size": self.size, "note": self.note, "undoes": self.undoes, "patches": patches}).encode()


def journal_path(path: Path) -> Path:
    """The path of the journal of a change in progress."""
    return path.with_name(f".{path.name}.tinyq-journal")


def undo_paths(path: Path) -> list[Path]:
    """The paths of a file's undo records, oldest first."""
    pattern = re.compile(re.escape(f".{path.name}.tinyq-undo-") + r"(\d+)")
    found = {int(match[1]): other for other in path.parent.iterdir() if (match := pattern.fullmatch(other.name))}
    return [found[n] for n in sorted(found)]


def refuse_interrupted(path: Path) -> None:
    """Raise CheckpointError if an in-place change of the file was interrupted, so that the file may be half changed."""
    # The journal carries the file's own name, not that of a symbolic link to it.
    journal = journal_path(Path(os.path.realpath(path)))
    if os.path.lexists(journal):
        raise CheckpointError(
            f"{path}: an in-place change was interrupted ({journal} exists); run `tinyq edit FILE --in-place` to complete it "
            "or `tinyq edit FILE --undo` to undo it"
        )


def change(path: Path, patches: tuple[Patch, ...], note: str) -> None:
    """Change the file, after completing an interrupted change. Raises InputError if it has not the bytes `old` of a patch."""
    with _locked(path) as file, signals.held():
        _finish(path, file)
        _begin(path, file, Record(os.fstat(file).st_size, patches, note))


def recover(path: Path) -> Record | None:
    """Complete an interrupted change; returns its record, or None if there was none.

    Raises InputError if the journal is damaged or belongs to another file, or the file is a symbolic link.
    """
    if not path.name or not path.parent.is_dir():
        return None
    unfinished = os.path.lexists(journal_path(path)) or temporaries(journal_path(path))
    next_undo = _next_undo(path, undo_paths(path))
    if not unfinished and not temporaries(next_undo) and not undo_paths(path):
        return None
    with _locked(path) as file, signals.held():
        record = _finish(path, file)
        remove_leftovers(next_undo)
        _forget_unmade(path, file)
        return record


def undo(path: Path) -> str:
    """Undo the last change, or complete an interrupted undo; returns the note of the undone change.

    Raises InputError if no change is recorded, or the record does not fit the file.
    """
    with _locked(path) as file:
        with signals.held():
            interrupted = _finish(path, file)
            if interrupted and interrupted.undoes:
                return interrupted.note
            last, record = _last(path, file)
            if os.fstat(file).st_size != last.size:
                raise InputError(
                    f"{path}: has {os.fstat(file).st_size} bytes; expected {last.size}, as {record.name} says; remove that "
                    "record"
                )
            if not last.rewrites:
                undone = tuple(patch.reversed for patch in last.patches)
                _begin(path, file, Record(last.size, undone, last.note, undoes=True))
        if last.rewrites:
            _replace_start(path, last.rewrites.reversed)
            record.unlink()
        return last.note


def _last(path: Path, file: int) -> tuple[Record, Path]:
    """The last change that can be undone, and the path of its undo record. Raises InputError if there is none."""
    _forget_unmade(path, file)
    records = undo_paths(path)
    if not records:
        raise InputError(f"{path}: nothing to undo: its folder has no undo record of it; check the path")
    return _read(records[-1]), records[-1]


def _forget_unmade(path: Path, file: int) -> None:
    """Remove the undo record of a rewriting that was killed before the new file replaced the old one."""
    for record in reversed(undo_paths(path)):
        moved = _read(record).rewrites
        if not moved:
            return
        made = os.pread(file, len(moved.new), 0) == moved.new
        if made or os.pread(file, len(moved.old), 0) != moved.old:
            return
        record.unlink()


def rewrite(
    path: Path,
    patch: Patch,
    note: str,
    *,
    progress: ByteProgress = lambda _: None,
    check: Callable[[], None] | None = None,
) -> None:
    """Replace the file by one that starts with `patch.new` instead of `patch.old`, of another length; `undo` takes it back.

    The file keeps its permissions. `check` is called before it is replaced. Raises InputError if the file does not start with
    `patch.old`, OutputError if the disk has no room for the new file beside it.
    """
    with _locked(path) as file:
        with signals.held():
            _finish(path, file)
        undo_path = _next_undo(path, undo_paths(path))
        try:
            with signals.held():  # a signal that comes meanwhile is raised at the end of this block
                remove_leftovers(undo_path)
                size = os.fstat(file).st_size + len(patch.new) - len(patch.old)
                _create(undo_path, Record(size, (patch,), note).packed())
            _replace_start(path, patch, progress, check)
        except BaseException:
            if os.path.samestat(os.fstat(file), os.lstat(path)):  # not replaced
                undo_path.unlink(missing_ok=True)
            raise


def _replace_start(
    path: Path, patch: Patch, progress: ByteProgress = lambda _: None, check: Callable[[], None] | None = None
) -> None:
    """Write the file anew with `patch.new` instead of `patch.old` at its start. Raises InputError if it does not start so."""
    source = DataFile(path)
    if bytes(source.read(0, min(len(patch.old), source.size))) != patch.old:
        raise InputError(f"{path}: has changed since it was read; run the command again")
    rest = source.size - len(patch.old)
    with atomic_output(path, force=True, size=len(patch.new) + rest, check=check) as stream:
        os.fchmod(stream.fileno(), stat.S_IMODE(os.fstat(source.descriptor).st_mode))
        stream.write(patch.new)
        stream.flush()
        copy_range(source, len(patch.old), rest, stream.fileno(), len(patch.new), progress)


def _next_undo(path: Path, records: list[Path]) -> Path:
    """The path of the next undo record."""
    number = int(records[-1].name.rpartition("-")[2]) + 1 if records else 1
    return path.with_name(f".{path.name}.tinyq-undo-{number}")


def _create(path: Path, data: bytes) -> None:
    """Write a journal or an undo record atomically, and flush it."""
    write_journal(path, data, path)
    sync(path.parent)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file's descriptor, open for reading and writing and locked. Raises InputError for links of either kind, and for what is
    not a regular file."""
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link; give its target, {os.path.realpath(path)}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file and cannot be changed in place; give a GGUF file")
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise OutputError(f"{path}: cannot be changed in place ({error.strerror}); write to another file") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(file), os.lstat(path)):
            raise InputError(f"{path}: was replaced by another run; run the command again")
        names = os.fstat(file).st_nlink
        if names > 1:
            # The others would change too, and their readers would not see the journal.
            raise InputError(
                f"{path}: has {names} names (hard links), which would all change; write to another file, or replace it by a "
                "copy of itself"
            )
        yield file
    except OSError as error:
        begun = os.path.lexists(journal_path(path))
        advice = "remove the cause, then run `tinyq edit FILE --undo`" if begun else "the file is unchanged"
        raise OutputError(f"{path}: could not be changed in place ({error.strerror}); {advice}") from error
    finally:
        os.close(file)


def _begin(path: Path, file: int, record: Record) -> None:
    """Write the journal atomically, then apply it. Raises InputError if the file has changed since it was read."""
    for patch in record.patches:
        if os.pread(file, len(patch.old), patch.offset) != patch.old:
            raise InputError(f"{path}: has changed since it was read; run the command again")
    _create(journal_path(path), record.packed())
    _finish(path, file)


def _finish(path: Path, file: int) -> Record | None:
    """Apply the journal's change, however much of it was applied before; None if there is no journal.

    Raises InputError if the journal does not fit the file.
    """
    journal = journal_path(path)
    remove_leftovers(journal)
    if not os.path.lexists(journal):
        return None
    record = _read(journal)
    for patch in record.patches:
        found = os.pread(file, len(patch.new), patch.offset)
        if not _torn(found, patch) or os.fstat(file).st_size != record.size:
            raise InputError(f"{path}: has bytes or a size that {journal.name} does not record; remove that journal")
    for patch in record.patches:
        data, at = memoryview(patch.new), patch.offset
        while data:
            count = os.pwrite(file, data, at)
            data, at = data[count:], at + count
    os.fsync(file)
    signals.wrote(path)
    records = undo_paths(path)
    if not record.undoes:
        # The rename is not flushed: if a power failure undoes it, the same change is applied again, to no effect.
        os.replace(journal, _next_undo(path, records))
    else:
        # After a crash between these two steps the undone record is already gone; an older one must stay.
        undone = tuple(patch.reversed for patch in record.patches)
        if records and _read(records[-1]).patches == undone:
            records[-1].unlink()
            sync(path.parent)
        journal.unlink()
    return record


def _torn(found: bytes, patch: Patch) -> bool:
    """Whether each byte found is the old or the new one, as after a write that was interrupted."""
    if len(found) != len(patch.new):
        return False
    bytes_found, old, new = (np.frombuffer(data, np.uint8) for data in (found, patch.old, patch.new))
    return bool(((bytes_found == old) | (bytes_found == new)).all())


def _read(path: Path) -> Record:
    """The journal or undo record at `path`. Raises InputError if tinyq did not write it, or a patch exceeds the file's size."""
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path}: is not a regular file; expected a journal or undo record; remove it")
    try:
        data = load_json(read_bytes(path, Kind.JOURNAL))
        patches = tuple(Patch(int(at), bytes.fromhex(old), bytes.fromhex(new)) for at, old, new in data["patches"])
        record = Record(int(data["size"]), patches, str(data["note"]), bool(data["undoes"]))
        whole = all(0 <= p.offset <= record.size - len(p.new) for p in patches)
        moved = record.rewrites
        # Only the start of a file may change its length, by a record of its own, which is no journal.
        whole = whole and (
            not moved or ((len(patches), moved.offset) == (1, 0) and path.name.rpartition("-")[2].isdecimal())
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: is not a journal or undo record written by tinyq ({error}); remove it") from error
    if not whole:
        raise InputError(f"{path}: records changes outside the file; remove it")
    return record
