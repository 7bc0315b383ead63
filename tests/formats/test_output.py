"""Outputs under attack and beside each other: links, two processes, long names."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import OutputError
from gguf_tools.formats.output import atomic_folder, atomic_output, atomic_outputs, check_outputs
from gguf_tools.formats.temporary import scratch_folder
from tests.formats.output_files import MARK, MARKS, files, write

# The guard


@pytest.mark.parametrize("way", ["itself", "symbolic", "hard", "dotted", "through a linked folder"])
def test_no_output_is_an_input(tmp_path: Path, way: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"precious")
    (tmp_path / "folder").symlink_to(tmp_path)
    other = tmp_path / "other"
    if way == "symbolic":
        other.symlink_to(source)
    if way == "hard":
        other.hardlink_to(source)
    path = {"itself": source, "dotted": tmp_path / "folder" / ".." / tmp_path.name / "source"}.get(way, other)
    path = tmp_path / "folder" / "source" if way.startswith("through") else path
    with pytest.raises(OutputError, match="is also an input of this command; give OUT another path"):
        check_outputs({"OUT": path}, [source], force=True)
    check_outputs({"OUT": tmp_path / "third"}, [source], force=False)


def test_an_input_that_is_not_there_yet_is_one_too(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is also an input of this command"):
        check_outputs({"--json": tmp_path / "a"}, [tmp_path / "gone" / ".." / "a"], force=True)


@pytest.mark.parametrize("way", ["same", "linked folder", "symbolic", "hard"])
def test_no_output_is_another(tmp_path: Path, way: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = tmp_path / "a", tmp_path / "b"
    if way in ("symbolic", "hard"):
        first.write_bytes(b"old")
    if way == "symbolic":
        second.symlink_to(first)
    if way == "hard":
        second.hardlink_to(first)
    second = {"same": first, "linked folder": tmp_path / "link" / "a"}.get(way, second)
    with pytest.raises(OutputError, match="is also the output of OUT; give --json another path"):
        check_outputs({"OUT": first, "--csv": None, "--json": second}, [], force=True)


def test_no_output_lies_in_a_folder_that_is_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="is inside the output of OUT"):
        check_outputs(
            {"OUT": tmp_path / "out", "--json": tmp_path / "out" / "a"}, [], force=True, folders={"OUT": MARKS}
        )


@pytest.mark.parametrize(
    "make", [Path.touch, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("a")]
)
def test_nothing_that_exists_is_replaced_without_force(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "a").write_bytes(b"precious")
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        check_outputs({"--save-recipe": tmp_path / "out"}, [], force=False)
    write(tmp_path / "out", force=True)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


# Temporary files


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where its name is guessed."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".out.{MARK}.tmp").symlink_to(victim)
    monkeypatch.setattr("secrets.token_hex", lambda _: MARK)
    with pytest.raises(OutputError, match="could not be written"):
        write(tmp_path / "out")
    monkeypatch.undo()
    write(tmp_path / "out")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / f".out.{MARK}.tmp").is_symlink()


def test_a_temporary_file_that_was_exchanged_does_not_become_the_output(tmp_path: Path) -> None:
    def exchange() -> None:
        (name,) = tmp_path.iterdir()
        name.unlink()
        name.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="was removed"), atomic_output(tmp_path / "out", check=exchange):
        pass
    assert not (tmp_path / "out").exists()


def test_two_runs_to_one_output(tmp_path: Path) -> None:
    """A lock tells them apart, not a process id: containers that share a folder have the same ones."""
    out = tmp_path / "out"
    with atomic_output(out) as stream:
        stream.write(b"first")
        with pytest.raises(OutputError, match="another process is writing it"):
            write(out, force=True)
        write(tmp_path / "other")
    assert out.read_bytes() == b"first"
    second = atomic_folder(tmp_path / "folder", marks=MARKS)
    with (
        atomic_folder(tmp_path / "folder", marks=MARKS),
        pytest.raises(OutputError, match="another process is writing it"),
    ):
        second.__enter__()


RACE = """
import sys
from pathlib import Path
from gguf_tools.errors import OutputError
from gguf_tools.formats.output import atomic_output
for n in range(60):
    try:
        with atomic_output(Path(sys.argv[1]), force=True) as stream:
            stream.write(sys.argv[2].encode() * 5000)
    except OutputError as error:
        assert "another process" in str(error), error
"""


def test_two_processes_never_mix_their_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    racers = [subprocess.Popen([sys.executable, "-c", RACE, out, letter]) for letter in "ab"]
    assert [racer.wait() for racer in racers] == [0, 0]
    assert out.read_bytes() in (b"a" * 5000, b"b" * 5000)
    assert files(tmp_path) == ["out"]


def test_a_lock_that_is_held_protects_a_leftover(tmp_path: Path) -> None:
    left = tmp_path / f".out.{MARK}.tmp"
    left.write_bytes(b"theirs")
    with left.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process"):
            write(tmp_path / "out")
        assert left.exists()
    write(tmp_path / "out")
    assert files(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "a" + "ü" * 120, "n" * 234, "n" * 233 + ".gguf"])
def test_long_names_leave_room_for_temporary_ones(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    write(tmp_path / name, b"newer", force=True)
    assert files(tmp_path) == [name]
    with atomic_folder(tmp_path / ("b" + name[1:]), marks=MARKS) as folder:
        (folder / "config.json").write_text("{}")
    paths = [tmp_path / f"{n}{name[1:]}" for n in "xy"]
    with atomic_outputs([(path, 0) for path in paths]) as streams:
        for stream in streams:
            stream.write(b"part")
    assert [path.read_bytes() for path in paths] == [b"part"] * 2


def test_names_that_are_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="more than 255 bytes"):
        check_outputs({"OUT": tmp_path / ("ü" * 128)}, [], force=True)


def test_outputs_whose_long_names_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    first, second = tmp_path / ("a" * 254 + "1"), tmp_path / ("a" * 254 + "2")
    with atomic_output(first) as stream:
        stream.write(b"1")
        write(second, b"2")
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")


def test_a_scratch_folder_that_cannot_be_filled_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def full(path: Path, mode: int = 0o777) -> None:
        if path.name == "files":
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, mode)

    monkeypatch.setattr(Path, "mkdir", full)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OutputError, match="cannot create a temporary folder"), scratch_folder(tmp_path / "out.gguf"):
        pass
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert files(tmp_path) == []


def test_an_output_in_a_scratch_folder_does_not_wait_for_its_lock(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "out.gguf") as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
        write(folder / "part")
        assert (folder / "part").read_bytes() == b"new"
        assert files(tmp_path) != []
    assert files(tmp_path) == []


# Errors of the system


@pytest.mark.parametrize("output", [atomic_output, atomic_folder])
def test_an_error_of_reading_is_not_said_to_be_one_of_writing(tmp_path: Path, output: Callable[..., Any]) -> None:
    given: dict[str, Any] = {} if output is atomic_output else {"marks": MARKS}
    for missing in ("input", "out.input", "folder/out"):
        with pytest.raises(FileNotFoundError), output(tmp_path / "out", **given):
            (tmp_path / missing).read_bytes()
    with pytest.raises(OutputError, match="out: could not be written"), output(tmp_path / "out", **given):
        raise OSError(errno.EIO, "Input/output error")
    assert files(tmp_path) == []


def test_an_error_below_a_temporary_folder_is_one_of_writing(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    with (
        pytest.raises(OutputError, match="link/out: could not be written"),
        atomic_folder(tmp_path / "link" / "out", marks=MARKS) as folder,
    ):
        (folder / "none" / "file").touch()
    assert files(tmp_path / "far") == []
