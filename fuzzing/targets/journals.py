"""Journals and undo records of changes in place, and the files that they belong to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.errors import CheckpointError, InputError
from gguf_tools.formats.commit import commit_path, settle
from gguf_tools.formats.journal import Patch, Record, journal_path, recover, refuse_interrupted, undo, undo_paths

CONTENT = bytes(range(64))


def _record(*patches: Patch, undoes: bool = False) -> bytes:
    return Record(len(CONTENT), patches, "swap(0:1)", undoes).packed()


SEEDS = (
    _record(Patch(3, CONTENT[3:5], b"ab")),
    _record(Patch(0, CONTENT[:1], b"x"), Patch(63, CONTENT[63:], b"y"), undoes=True),
    _record(),
    b"{",
)


def _journal(folder: Path) -> Prepared:
    path = folder / "model.gguf"

    def read(data: bytes) -> bool:
        for record in undo_paths(path):
            record.unlink()
        path.write_bytes(CONTENT)
        journal_path(path).write_bytes(data)
        with contextlib.suppress(CheckpointError):
            refuse_interrupted(path)
            raise AssertionError("a journal was not noticed")
        try:
            return recover(path) is not None
        except InputError:
            assert path.read_bytes() == CONTENT, "a refused journal changed the file"
            raise
        finally:
            assert path.stat().st_size == len(CONTENT)

    return Prepared(SEEDS, read)


def _undo(folder: Path) -> Prepared:
    path = folder / "model.gguf"

    def read(data: bytes) -> bool:
        journal_path(path).unlink(missing_ok=True)
        path.write_bytes(CONTENT)
        record = path.with_name(f".{path.name}.tinyq-undo-1")
        record.write_bytes(data)
        undo(path)
        assert not record.exists()
        return True

    rewritten = Record(len(CONTENT), (Patch(0, b"before", CONTENT[:3]),), "name set").packed()
    seeds = [_record(Patch(3, b"ab", CONTENT[3:5])), rewritten, *SEEDS]
    return Prepared(seeds, read)


def _commit(folder: Path) -> Prepared:
    """A set of outputs, one of which has its temporary name still, and a file that is none of them."""
    paths = tuple(folder / f"out-0000{n}-of-00002.gguf" for n in (1, 2))
    # Names that a run could have drawn, the same in every process, so that inputs that were kept refer to them.
    renamed, temporary = (path.with_name(f".{path.name}.{'0' * 16}.tmp") for path in paths)
    other = folder / "other.gguf"

    def read(data: bytes) -> bool:
        paths[0].write_bytes(b"1")
        paths[1].unlink(missing_ok=True)
        temporary.write_bytes(b"2")
        other.write_bytes(b"3")
        commit_path(paths[0]).write_bytes(data)
        try:
            settle(paths)
        finally:
            assert (paths[0].read_bytes(), other.read_bytes()) == (b"1", b"3"), "a planted journal changed a file"
        return paths[1].exists()

    both = [[renamed.name, paths[0].name], [temporary.name, paths[1].name]]
    return Prepared([json.dumps(both).encode(), json.dumps(both[1:]).encode()], read)


MUTATE = json_mutator(["size", "note", "undoes", "patches"], [64, "00", "0304", [[3, "0304", "6162"]], json.dumps("x")])
TARGETS = (
    Target(
        name="journal",
        title="journal of an interrupted change",
        prepare=_journal,
        mutate=MUTATE,
        longest=1000,
        executions=200_000,
    ),
    Target(
        name="commit",
        title="journal of several outputs",
        prepare=_commit,
        mutate=json_mutator((), ("other.gguf", "..", "a/b")),
        longest=1000,
        executions=100_000,
    ),
    Target(name="undo-record", title="undo record", prepare=_undo, mutate=MUTATE, longest=1000, executions=200_000),
)
