"""Intermediate files: the folder they lie in, and that nothing of them stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gguf_tools.errors import OutputError
from gguf_tools.formats.scratch import unnamed_file, working_folder
from gguf_tools.formats.temporary_folder import temporary_folder


def test_the_folder_is_tempfiles_own_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> str:
        raise AssertionError("tempfile tries folders by writing to them")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert tempfile.gettempdir() == str(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", refused)
    assert temporary_folder() == tmp_path
    assert tempfile.gettempdir() == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_full_or_no_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    full = tmp_path / "full"
    full.mkdir()
    state = os.statvfs(tmp_path)

    def with_a_full_one(path: str) -> os.statvfs_result:
        return os.statvfs_result((*state[:4], 0, *state[5:])) if path == str(full) else state

    monkeypatch.setenv("TEMP", str(tmp_path))
    for name in ("none", "file", "full"):
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        if name == "full":
            monkeypatch.setattr(os, "statvfs", with_a_full_one)
        assert temporary_folder() == tmp_path


def test_a_working_folder_is_private_and_removed(tmp_path: Path) -> None:
    with working_folder("tinyq-test", tmp_path) as one, working_folder("tinyq-test", tmp_path) as other:
        assert one != other
        (one / "a").write_bytes(b"x")
        assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    assert not list(tmp_path.iterdir())


def test_a_working_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=r"cannot create a temporary folder .*; set TMPDIR to a folder with room"),
        working_folder("tinyq-test", tmp_path / "file"),
    ):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from gguf_tools.formats import scratch

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

del os.O_TMPFILE
if sys.argv[1] == "file":
    os.unlink = kill
    scratch.unnamed_file("tinyq-test", Path(sys.argv[2]))
with scratch.working_folder("tinyq-test", Path(sys.argv[2])):
    kill()
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_a_killed_run_leaves_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, what, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with unnamed_file("tinyq-test", tmp_path) as stream:
        assert not list(tmp_path.iterdir())
        stream.write(b"text")
        stream.flush()
        assert os.pread(stream.fileno(), 9, 0) == b"text"


def test_a_file_has_no_name(tmp_path: Path) -> None:
    with unnamed_file("tinyq-test", tmp_path) as stream:
        stream.write(b"text")
        assert not list(tmp_path.iterdir())


def test_a_removal_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, failed = os.unlink, [False]

    def busy(path: str, *, dir_fd: int | None = None) -> None:
        if not failed[0]:
            failed[0] = True
            raise OSError(errno.EBUSY, "Device or resource busy")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", busy)
    with working_folder("tinyq-test", tmp_path) as folder:
        (folder / "a").write_text("a")
        (folder / "b").write_text("b")
    assert failed[0]
    assert list(tmp_path.iterdir()) == []
