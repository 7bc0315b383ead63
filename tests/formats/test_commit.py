"""Files that belong together: a set that a crash parts is one after the next run, and a planted journal moves nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from gguf_tools.errors import OutputError
from gguf_tools.formats import commit
from gguf_tools.formats.output import atomic_outputs
from tests.formats.output_files import MARK, files


def write_set(paths: list[Path], data: bytes, *, force: bool = True) -> None:
    with atomic_outputs([(path, len(data)) for path in paths], force=force) as streams:
        for stream in streams:
            stream.write(data)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"part-{n}" for n in range(3)]


def killed(paths: list[Path], steps: int) -> None:
    """Overwrites the set in a process that is killed before step `steps` + 1 of the commit."""
    child = os.fork()
    if not child:
        left, replace = [steps], os.replace

        def step(*arguments: Path) -> None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            replace(*arguments)

        setattr(os, "replace", step)  # noqa: B010
        write_set(paths, b"new")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.parametrize("steps", range(5))
def test_a_set_that_a_kill_parted_is_one_after_the_next_run(three: list[Path], steps: int) -> None:
    """Step 1 writes the journal; before it the old set stays, after it the new one is completed."""
    write_set(three, b"old", force=False)
    killed(three, steps)
    with pytest.raises(OutputError, match="exists already"):
        write_set(three, b"never", force=False)
    assert {path.read_bytes() for path in three} == {b"new" if steps else b"old"}
    assert files(three[0].parent) == [path.name for path in three]


def test_an_interrupt_amid_the_commit_completes_it(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(three, b"old", force=False)
    replace, left = os.replace, [2]

    def step(*arguments: Path) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", step)
    with pytest.raises(KeyboardInterrupt):
        write_set(three, b"new")
    assert {path.read_bytes() for path in three} == {b"new"}
    assert files(three[0].parent) == [path.name for path in three]


def test_a_disk_that_is_full_at_the_journal_leaves_the_old_set(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(three, b"old", force=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_set(three, b"new")
    assert {path.read_bytes() for path in three} == {b"old"}
    assert files(three[0].parent) == [path.name for path in three]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_flushed(three: list[Path], monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Some file systems have no flush for folders; on others it may fail, and then nothing is renamed."""
    write_set(three, b"old", force=False)
    fsync = os.fsync

    def step(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", step)
    if code == errno.EIO:
        with pytest.raises(OutputError, match="Input/output error"):
            write_set(three, b"new")
    else:
        write_set(three, b"new")
    assert {path.read_bytes() for path in three} == {b"old" if code == errno.EIO else b"new"}
    assert files(three[0].parent) == [path.name for path in three]


def test_a_journal_can_be_read_whatever_the_umask(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    sync = commit.sync

    def step(path: Path) -> None:
        modes.extend(stat.S_IMODE(other.stat().st_mode) for other in path.glob(".*.tinyq-commit"))
        sync(path)

    monkeypatch.setattr(commit, "sync", step)
    before = os.umask(0o777)
    try:
        write_set(three, b"new")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert {stat.S_IMODE(path.stat().st_mode) for path in three} == {0}


@pytest.mark.parametrize(
    "moves",
    [
        [["victim", "part-0"]],
        [[f".part-0.{MARK}.tmp", "victim"]],
        [["../victim", "part-0"]],
        [["", "part-0"]],
        [[f".part-0.{MARK}.tmp", ""]],
        [["..", "part-0"]],
        [["a\0b", "part-\ud800"]],
        [[f".part-1.{MARK}.tmp", "part-1"]],
        {"a": 1},
        [[1, 2]],
        "[" * 100_000,
    ],
)
def test_a_planted_journal_moves_nothing(three: list[Path], tmp_path: Path, moves: object) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f".part-0.{MARK}.tmp").write_bytes(b"left")
    (tmp_path / f".part-1.{MARK}.tmp").symlink_to("victim")
    journal = commit.commit_path(three[0])
    journal.write_text(moves if isinstance(moves, str) else json.dumps(moves))
    with pytest.raises(OutputError, match=r"\.tinyq-commit: .*remove it"):
        write_set(three, b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not any(path.exists() for path in three)
    journal.unlink()
    journal.symlink_to("victim")
    with pytest.raises(OutputError, match="remove it"):
        write_set(three, b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_planted_journal_does_not_rename_one_output_to_another(three: list[Path]) -> None:
    """The last move is made first: what it puts in place is not yet there when the names are checked."""
    three[0].write_bytes(b"precious")
    left = three[1].with_name(f".part-1.{MARK}.tmp")
    left.write_bytes(b"left")
    moves = [[three[1].name, three[0].name], [left.name, three[1].name]]
    commit.commit_path(three[0]).write_text(json.dumps(moves))
    with pytest.raises(OutputError, match=r"\.tinyq-commit: .*remove it"):
        write_set(three, b"new")
    assert three[0].read_bytes() == b"precious"
    assert not three[1].exists()
