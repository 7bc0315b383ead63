"""Journals and undo records of changes in place, and the files that they belong to."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.errors import CheckpointError, InputError
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
        path.with_name(f".{path.name}.tinyq-undo-1").write_bytes(data)
        undo(path)
        assert path.stat().st_size == len(CONTENT)
        return True

    seeds = [_record(Patch(3, b"ab", CONTENT[3:5])), *SEEDS]
    return Prepared(seeds, read)


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
    Target(name="undo-record", title="undo record", prepare=_undo, mutate=MUTATE, longest=1000, executions=200_000),
)
