"""Changing a few bytes of a file in place so that a crash at any moment leaves the old file or the new one.

What will change is first written to a journal beside the file, whole and flushed to the disk; then the file is changed,
flushed, and the journal becomes an undo record by a rename. A journal that is left over belongs to a change that was
interrupted: readers refuse the file (`refuse_interrupted`), and the commands that may write it complete the change first
(`recover`, `change`, `undo`). A lock on the file, which ends with its process, keeps two changes apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import CheckpointError, InputError, OutputError
from gguf_tools.formats.commit import sync
from gguf_tools.formats.text_file import Kind, read_bytes


@dataclass(frozen=True)
class Patch:
    """Bytes at `offset` that change from `old` to `new`, which are as long."""

    offset: int
    old: bytes
    new: bytes

    @property
    def reversed(self) -> Patch:
        """The change that undoes this one."""
        return Patch(self.offset, self.new, self.old)


@dataclass(frozen=True)
class Record:
    """A change to a file of `size` bytes; `note` says what it is, `undoes` whether it takes the last change back."""

    size: int
    patches: tuple[Patch, ...]
    note: str
    undoes: bool = False

    def packed(self) -> bytes:
        """The record as a file holds it."""
        patches = [[patch.offset, patch.old.hex(), patch.new.hex()] for patch in self.patches]
        return json.dumps({"size": self.size, "note": self.note, "undoes": self.undoes, "patches": patches}).encode()


def journal_path(path: Path) -> Path:
    """Where the journal of a change in progress lies."""
    return path.with_name(f".{path.name}.tinyq-journal")


def undo_paths(path: Path) -> list[Path]:
    """The undo records of a file, the oldest first."""
    pattern = re.compile(re.escape(f".{path.name}.tinyq-undo-") + r"(\d+)")
    found = {int(match[1]): other for other in path.parent.iterdir() if (match := pattern.fullmatch(other.name))}
    return [found[n] for n in sorted(found)]


def refuse_interrupted(path: Path) -> None:
    """Raise CheckpointError where a change in place of the file was interrupted, so that it may be half changed."""
    # A change is only begun under the file's own name, which a symbolic link may point to.
    journal = journal_path(Path(os.path.realpath(path)))
    if os.path.lexists(journal):
        raise CheckpointError(
            f"{path}: a change in place was interrupted ({journal} is left over); run `tinyq surgery FILE --undo` to take it "
            "back or `tinyq surgery FILE --in-place` to complete it"
        )


def change(path: Path, patches: tuple[Patch, ...], note: str) -> None:
    """Change the file; InputError where it is no longer what the patches were made for."""
    with _locked(path) as file:
        _finish(path, file)
        _begin(path, file, Record(os.fstat(file).st_size, patches, note))


def recover(path: Path) -> Record | None:
    """Complete a change that was interrupted; what it was, None where there is none.

    Raises InputError where the journal is damaged or of another file, or the file is a symbolic link.
    """
    if not path.name or not os.path.lexists(journal_path(path)):
        return None
    with _locked(path) as file:
        return _finish(path, file)


def undo(path: Path) -> str:
    """Take the last change back, or complete taking it back where that was interrupted; the change's note."""
    with _locked(path) as file:
        interrupted = _finish(path, file)
        if interrupted and interrupted.undoes:
            return interrupted.note
        records = undo_paths(path)
        if not records:
            raise InputError(f"{path}: nothing to undo: no change made in place is recorded beside it")
        last = _read(records[-1])
        if os.fstat(file).st_size != last.size:
            raise InputError(f"{path}: is not the file that {records[-1].name} describes any more; remove the record")
        _begin(path, file, Record(last.size, tuple(patch.reversed for patch in last.patches), last.note, undoes=True))
        return last.note


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, opened for reading and writing and locked; InputError where it is not a regular file under its own name."""
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link; give the file that it points to, {os.path.realpath(path)}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file, which alone can be changed in place")
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise OutputError(f"{path}: cannot be changed in place ({error.strerror}); write to another file") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    except OSError as error:
        begun = os.path.lexists(journal_path(path))
        advice = "run `tinyq surgery FILE --undo` once that is mended" if begun else "it is as it was"
        raise OutputError(f"{path}: could not be changed in place ({error.strerror}); {advice}") from error
    finally:
        os.close(file)


def _begin(path: Path, file: int, record: Record) -> None:
    """Write the journal, whole or not at all, and carry it through."""
    for patch in record.patches:
        if os.pread(file, len(patch.old), patch.offset) != patch.old:
            raise InputError(f"{path}: has changed since it was read; start again")
    temporary = journal_path(path).with_suffix(".tmp")
    target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        data = memoryview(record.packed())
        while data:
            data = data[os.write(target, data) :]
        os.fsync(target)
        os.replace(temporary, journal_path(path))
    except BaseException:
        # Such as a full disk: nothing has begun.
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(target)
    sync(path.parent)
    _finish(path, file)


def _finish(path: Path, file: int) -> Record | None:
    """Complete the journal's change, from whatever point it reached; None where there is no journal."""
    journal = journal_path(path)
    journal.with_suffix(".tmp").unlink(missing_ok=True)
    if not os.path.lexists(journal):
        return None
    record = _read(journal)
    for patch in record.patches:
        found = os.pread(file, len(patch.new), patch.offset)
        # A torn write leaves old bytes beside new ones, and nothing else.
        torn = len(found) == len(patch.new) and all(map(_either, found, patch.old, patch.new))
        if not torn or os.fstat(file).st_size != record.size:
            raise InputError(f"{path}: is not the file that {journal.name} beside it describes; remove that journal")
    for patch in record.patches:
        data, at = memoryview(patch.new), patch.offset
        while data:
            count = os.pwrite(file, data, at)
            data, at = data[count:], at + count
    os.fsync(file)
    records = undo_paths(path)
    if not record.undoes:
        number = int(records[-1].name.rpartition("-")[2]) + 1 if records else 1
        # Not flushed: should the name be lost with the power, the change is carried through once more, to no effect.
        os.replace(journal, path.with_name(f".{path.name}.tinyq-undo-{number}"))
    else:
        # After a crash between these two steps the record that was undone is gone already: another is left alone.
        undone = tuple(patch.reversed for patch in record.patches)
        if records and _read(records[-1]).patches == undone:
            records[-1].unlink()
            sync(path.parent)
        journal.unlink()
    return record


def _either(found: int, old: int, new: int) -> bool:
    return found in (old, new)


def _read(path: Path) -> Record:
    """The record of changes at `path`; InputError for a file that is none or does not fit the GGUF's size."""
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path}: is not a regular file, hence no record that tinyq wrote; remove it")
    try:
        data = json.loads(read_bytes(path, Kind.JOURNAL))
        patches = tuple(Patch(int(at), bytes.fromhex(old), bytes.fromhex(new)) for at, old, new in data["patches"])
        record = Record(int(data["size"]), patches, str(data["note"]), bool(data["undoes"]))
        whole = all(len(p.old) == len(p.new) and 0 <= p.offset <= record.size - len(p.new) for p in patches)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: is not a record that tinyq wrote ({error}); remove it") from error
    if not whole:
        raise InputError(f"{path}: its changes do not fit the file; remove it")
    return record
