"""Outputs under attack and beside each other: links, two processes, sets of files that a crash parts, long names."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, OutputError
from gguf_tools.formats import commit
from gguf_tools.formats.output import (
    GOLDEN,
    atomic_folder,
    atomic_output,
    atomic_outputs,
    check_folder,
    check_outputs,
)
from gguf_tools.formats.temporary import scratch_folder
from gguf_tools.formats.watch import Watch

MARK = "0123456789abcdef"
MARKS = ("config.json",)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, data: bytes = b"new", *, force: bool = False) -> None:
    with atomic_output(path, force=force) as stream:
        stream.write(data)


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


# Folders


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    with atomic_folder(tmp_path / "far" / "real", marks=MARKS) as folder:
        (folder / "config.json").write_text("1")
    (tmp_path / "link").symlink_to("far/real")
    with atomic_folder(tmp_path / "link", force=True, marks=MARKS) as folder:
        (folder / "config.json").write_text("2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "real" / "config.json").read_text() == "2"
    assert (files(tmp_path), files(tmp_path / "far")) == (["far", "link"], ["real"])


def test_force_replaces_no_subfolder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "checkpoint-500").mkdir(parents=True)
    (out / "checkpoint-500" / "config.json").write_text("precious")
    (out / "config.json").write_text("1")
    with (
        pytest.raises(OutputError, match="has the subfolder checkpoint-500, and --force"),
        atomic_folder(out, force=True, marks=MARKS),
    ):
        raise AssertionError("entered")
    (out / "checkpoint-500").rename(tmp_path / "moved")
    with atomic_folder(out, force=True, marks=MARKS) as folder:
        # One that another process makes meanwhile is kept too.
        (folder / "config.json").write_text("2")
        (out / "meanwhile").mkdir()
        with pytest.raises(OutputError):
            check_folder(out, True, MARKS)
        (out / "meanwhile").rmdir()
    assert (files(tmp_path), files(out)) == (["moved", "out"], ["config.json"])


def test_force_replaces_golden_values_of_several_models(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in (out, out / "llama", out / "qwen3"):
        folder.mkdir()
        (folder / "golden.json").write_text("{}")
    (out / "llama" / "checkpoint").mkdir()
    check_folder(out, True, (GOLDEN,))
    (out / "mine").mkdir()
    with pytest.raises(OutputError, match="has the subfolder mine"):
        check_folder(out, True, (GOLDEN,))


def test_force_replaces_no_folder_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text("{}")
    with pytest.raises(OutputError, match=r"is a folder without config\.json, and --force"):
        check_folder(tmp_path, True, MARKS)


@pytest.mark.parametrize("name", ["recipe.toml", "below/recipe.toml"])
def test_a_folder_that_contains_an_input_is_not_replaced(tmp_path: Path, name: str) -> None:
    recipe = tmp_path / "out" / name
    recipe.parent.mkdir(parents=True)
    recipe.touch()
    (tmp_path / "out" / "golden.json").touch()
    (recipe.parent / "golden.json").touch()
    (tmp_path / "link").symlink_to("out/" + name)
    (recipe.parent / "link").symlink_to(tmp_path / "elsewhere")
    (recipe.parent / "_").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").touch()
    for given in (recipe, tmp_path / "link", recipe.parent / "link"):
        with pytest.raises(
            OutputError, match=f"out: contains the input {re.escape(str(given))}; give OUT another path"
        ):
            check_outputs({"OUT": tmp_path / "out"}, [given], force=True, folders={"OUT": (GOLDEN,)})


def test_a_folder_that_a_killed_run_had_moved_away_comes_back(tmp_path: Path) -> None:
    old = tmp_path / f".out.{MARK}.old"
    old.mkdir()
    (old / "config.json").write_text("precious")
    (tmp_path / f".out.{MARK}.tmp").mkdir()
    with pytest.raises(OutputError, match="exists already"), atomic_folder(tmp_path / "out", marks=MARKS):
        raise AssertionError("entered")
    assert files(tmp_path) == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "precious"


# Files that belong together


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


# Sources that change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"longer than before"), "changed while it was read"),
        (lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns + 1)), "changed while it was read"),
        (lambda path: (path.with_name("b").write_bytes(b"same"), path.with_name("b").replace(path)), "changed"),
        (lambda path: path.unlink(), "was removed while it was read"),
    ],
)
def test_a_file_that_changes_is_named(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"same")
    watch = Watch.over([path, tmp_path / "absent", tmp_path])
    watch.check()
    change(path)
    with pytest.raises(CheckpointError, match=f"a: {said}"):
        watch.check()
    with pytest.raises(CheckpointError), atomic_output(tmp_path / "out", check=watch.check) as stream:
        stream.write(b"abc")
    assert not (tmp_path / "out").exists()


def test_a_file_that_appears_is_named(tmp_path: Path) -> None:
    watch = Watch.over([tmp_path / "a"])
    (tmp_path / "a").touch()
    with pytest.raises(CheckpointError, match="a: appeared while it was read"):
        watch.check()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_not_made_through_a_link_to_nothing(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with (
        pytest.raises(OutputError, match="is a symbolic link to nowhere, which does not exist"),
        atomic_folder(tmp_path / "out", force=force, marks=MARKS),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


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
