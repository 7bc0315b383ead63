"""Surgery in place: the header changes, a crash at any moment leaves the old file or the new one."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.cli import run
from gguf_tools.errors import CheckpointError, InputError, OutputError
from gguf_tools.formats.gguf.header import ValueType, array, read_header, string
from gguf_tools.formats.gguf.keys import RESERVE
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.journal import journal_path, recover, undo, undo_paths
from gguf_tools.formats.temporary import random_path
from surgery.gguf.in_place import apply_in_place, plan_in_place
from surgery.gguf.layers import open_layered
from surgery.gguf.proof import SurgeryProof
from surgery.gguf.rewrite import plan_gguf
from surgery.recipe import parse_text
from tests.oracle import convert, llama, nmse
from tests.surgery.surgery_files import operated, raw_tensors, split, with_metadata
from tests.tiny_models import checkpoint, dense

PERMUTATIONS = ["swap(1:10)", "reverse(0..11)", "cycle(2..11@3)", "move(0:11)", "swap(0:1) + reverse(3..9)"]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of twelve layers, whose numbers have one digit and two, with per-layer metadata."""
    folder = tmp_path_factory.mktemp("twelve")
    config = dense(
        num_hidden_layers=12, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1
    )
    whole = convert(checkpoint(folder / "hf", config), folder / "whole.gguf")
    widths = array(ValueType.UINT32, [32] * 12)
    values = array(ValueType.FLOAT32, [n / 2 for n in range(12)])
    return with_metadata(
        whole, folder / "arrays.gguf", {"qwen3.feed_forward_length": widths, "qwen3.xielu.beta": values}
    )


@pytest.fixture
def file(twelve: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    path = tmp_path / "model.gguf"
    path.write_bytes(twelve.read_bytes())
    return path


def in_place(path: Path, recipe: str) -> None:
    apply_in_place(plan_in_place(plan_gguf(open_layered(path), parse_text(recipe))))


@pytest.mark.parametrize("recipe", PERMUTATIONS)
def test_in_place_is_the_same_as_writing_a_new_file(twelve: Path, file: Path, tmp_path: Path, recipe: str) -> None:
    in_place(file, recipe)
    other = operated(twelve, tmp_path / "other.gguf", recipe)
    assert raw_tensors(file) == raw_tensors(other)
    assert file.stat().st_size == twelve.stat().st_size
    got, want = read_header(file), read_header(other)
    assert got.get("tinyq.surgery") == want.get("tinyq.surgery") == recipe
    assert got.get("qwen3.xielu.beta") == want.get("qwen3.xielu.beta") != tuple(n / 2 for n in range(12))
    made = {"tinyq.made_from.digest", "tinyq.made_from.type"}
    assert set(got.metadata) == set(want.metadata) - made
    assert not journal_path(file).exists()


def test_llama_runs_what_was_changed_in_place(file: Path, tmp_path: Path) -> None:
    whole = operated(file, tmp_path / "new.gguf", "swap(1:10)")
    in_place(file, "swap(1:10)")
    assert nmse(llama(file)[0], llama(whole)[0]) == 0.0


def test_a_file_system_without_locks_is_no_obstacle(twelve: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    in_place(file, "swap(1:10)")
    undo(file)
    assert file.read_bytes() == twelve.read_bytes()


def test_undo_takes_changes_back_one_by_one(twelve: Path, file: Path) -> None:
    in_place(file, "swap(1:10)")
    between = file.read_bytes()
    in_place(file, "cycle(0..3)")
    assert read_header(file).get("tinyq.surgery") == "swap(1:10) + cycle(0..3@1)"
    assert undo(file) == "cycle(0..3@1)"
    assert file.read_bytes() == between
    assert undo(file) == "swap(1:10)"
    assert file.read_bytes() == twelve.read_bytes()
    assert os.listdir(file.parent) == ["model.gguf"]
    with pytest.raises(InputError, match="nothing to undo"):
        undo(file)


def _killed_at(action: Callable[[], object], moment: int) -> bool:
    """Do it in a child that is killed at its call number `moment` to the system; whether the child was."""
    child = os.fork()
    if not child:
        calls = 0

        def dying(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*args: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == moment and name == "pwrite":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])  # torn
                if calls == moment and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)

            return call

        for name in ("write", "pwrite", "fsync", "replace", "unlink"):
            setattr(os, name, dying(name))
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(twelve: Path, file: Path) -> None:
    old = twelve.read_bytes()
    in_place(file, "reverse(0..11)")
    new = file.read_bytes()
    undo(file)
    planned = plan_in_place(plan_gguf(open_layered(file), parse_text("reverse(0..11)")))
    seen = set()
    for moment in range(1, 200):
        killed = _killed_at(lambda: apply_in_place(planned), moment)
        recover(file)
        assert read_header(file).architecture == "qwen3"
        now = file.read_bytes()
        assert now in (old, new)
        seen.add((killed, now == new))
        assert not journal_path(file).exists()
        if now == new:
            assert len(undo_paths(file)) == 1
            undo(file)
            assert file.read_bytes() == old
        assert undo_paths(file) == []
        if not killed:
            break
    assert seen == {(True, False), (True, True), (False, True)}


def test_a_kill_at_any_moment_of_an_undo_leaves_one_or_the_other(twelve: Path, file: Path) -> None:
    old = twelve.read_bytes()
    in_place(file, "swap(2:3)")
    before = file.read_bytes()
    in_place(file, "swap(1:10)")
    new = file.read_bytes()
    for moment in range(1, 200):
        killed = _killed_at(lambda: undo(file), moment)
        recover(file)
        now = file.read_bytes()
        assert now in (before, new)
        assert len(undo_paths(file)) == (1 if now == before else 2)
        if not killed:
            break
        if now == before:
            in_place(file, "swap(1:10)")
            assert file.read_bytes() == new
    undo(file)
    assert file.read_bytes() == old


def test_more_than_another_order_is_refused(file: Path) -> None:
    for recipe in ("bridge(0:1)", "scale(1@0.5)", "delete(3)", "swap(0:1, only=ffn)"):
        named = rf"{re.escape(str(parse_text(recipe)))}: --in-place can only reorder whole layers"
        for whole in (recipe, f"swap(1:2) + {recipe}", f"{recipe} + swap(0:1)"):
            with pytest.raises(InputError, match=named):
                in_place(file, whole)


def test_splits_are_refused(twelve: Path, tmp_path: Path) -> None:
    first = split(twelve, tmp_path / "part", 2)[0]
    with pytest.raises(InputError, match="is part of a split file"):
        in_place(first, "swap(0:1)")


def test_a_header_without_room_is_refused_where_the_recipe_must_be_recorded(twelve: Path, tmp_path: Path) -> None:
    bare = with_metadata(twelve, tmp_path / "bare.gguf", {RESERVE: None})
    with pytest.raises(OutputError, match="no room"):
        in_place(bare, "swap(0:1)")
    stranger = with_metadata(bare, tmp_path / "stranger.gguf", {"tinyq.source.digest": None})
    planned = plan_in_place(plan_gguf(open_layered(stranger), parse_text("swap(0:1)")))
    assert not planned.recorded
    apply_in_place(planned)
    assert read_header(stranger).get("tinyq.surgery") is None
    assert raw_tensors(stranger) == raw_tensors(operated(bare, tmp_path / "new.gguf", "swap(0:1)"))
    assert undo(stranger) == "swap(0:1)"


def test_the_reserve_is_used_up_and_then_refused(twelve: Path, tmp_path: Path) -> None:
    small = with_metadata(twelve, tmp_path / "small.gguf", {RESERVE: string(" " * 128)})
    refused = None
    for _ in range(40):
        try:
            in_place(small, "swap(0:1)")
        except OutputError as error:
            refused = error
            break
    assert refused is not None
    assert len(undo_paths(small)) >= 4
    assert undo_paths(small)[-1].name.endswith(f"-{len(undo_paths(small))}")


def interrupted(file: Path, action: Callable[[], object], wanted: Callable[[bytes], bool]) -> bytes:
    """Kill `action` at the first moment that leaves a journal beside a file of which `wanted` is true; the bytes then."""
    for moment in range(1, 200):
        assert _killed_at(action, moment)
        now = file.read_bytes()
        if journal_path(file).exists() and wanted(now):
            return now
        recover(file)
        if now != file.read_bytes() or undo_paths(file):
            undo(file)
    raise AssertionError("never interrupted so")


@pytest.fixture
def torn(twelve: Path, file: Path) -> Path:
    """A file whose change was interrupted half way."""
    old = twelve.read_bytes()
    planned = plan_in_place(plan_gguf(open_layered(file), parse_text("reverse(0..11)")))
    interrupted(file, lambda: apply_in_place(planned), lambda now: now != old)
    return file


@pytest.mark.parametrize("linked", [False, True], ids=["itself", "linked"])
def test_reading_a_file_that_is_half_changed_is_refused_and_writes_nothing(
    torn: Path, tmp_path: Path, linked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = torn
    if linked:
        (tmp_path / "elsewhere").mkdir()
        path = tmp_path / "elsewhere" / "link.gguf"
        path.symlink_to(torn)
    before = {other.name: other.read_bytes() for other in torn.parent.iterdir() if other.is_file()}
    for read in (read_header, open_gguf, open_layered):
        with pytest.raises(CheckpointError, match="an in-place change was interrupted"):
            read(path)
    out = tmp_path / "out.gguf"
    for command in (
        ["inspect", str(path)],
        ["quantize", str(path), str(out), "q8_0"],
        ["surgery", str(path), str(out), "--swap", "0:1"],
        ["surgery", str(path), "--swap", "0:1", "--in-place", "--dry-run"],
    ):
        assert run(command) == 2
        complaint = capsys.readouterr().err
        assert journal_path(torn).name in complaint
        assert "--undo" in complaint
        assert len(complaint.splitlines()) == 1
    assert {other.name: other.read_bytes() for other in torn.parent.iterdir() if other.is_file()} == before


def test_undo_takes_an_interrupted_change_back(twelve: Path, torn: Path) -> None:
    assert run(["surgery", str(torn), "--undo", "-q"]) == 0
    assert torn.read_bytes() == twelve.read_bytes()
    assert os.listdir(torn.parent) == [torn.name]


def test_in_place_completes_an_interrupted_change(twelve: Path, torn: Path, tmp_path: Path) -> None:
    assert run(["surgery", str(torn), "--in-place", "-q"]) == 0
    assert raw_tensors(torn) == raw_tensors(operated(twelve, tmp_path / "other.gguf", "reverse(0..11)"))
    assert len(undo_paths(torn)) == 1


def test_in_place_goes_on_from_an_interrupted_change(twelve: Path, torn: Path, tmp_path: Path) -> None:
    assert run(["surgery", str(torn), "--swap", "0:1", "--in-place", "-q"]) == 0
    assert raw_tensors(torn) == raw_tensors(operated(twelve, tmp_path / "other.gguf", "reverse(0..11) + swap(0:1)"))


def test_an_interrupted_undo_is_completed_and_no_more_is_undone(file: Path, tmp_path: Path) -> None:
    in_place(file, "swap(2:3)")
    between = file.read_bytes()
    in_place(file, "swap(1:10)")
    new, origin = file.read_bytes(), file.parent
    for moment in range(1, 200):
        file = shutil.copytree(origin, tmp_path.with_name(f"{tmp_path.name}-{moment}")) / file.name
        assert _killed_at(partial(undo, file), moment)
        if journal_path(file).exists() and file.read_bytes() != new:
            break
    assert run(["surgery", str(file), "--undo", "-q"]) == 0
    assert file.read_bytes() == between
    assert len(undo_paths(file)) == 1


def test_an_interrupted_proof_undoes_the_change_and_says_so(
    file: Path, twelve: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        assert file.read_bytes() != twelve.read_bytes()
        raise KeyboardInterrupt

    monkeypatch.setattr(SurgeryProof, "__call__", interrupted)
    assert run(["surgery", str(file), "--in-place", "--swap", "1:10"]) == 130
    assert capsys.readouterr().err.strip() == "tinyq: interrupted; no output was left behind"
    assert file.read_bytes() == twelve.read_bytes()
    assert undo_paths(file) == []


def test_what_a_kill_leaves_of_a_journal_is_removed_by_in_place_alone(file: Path, twelve: Path) -> None:
    left = random_path(journal_path(file))
    left.write_bytes(b"half a journal")
    stranger = file.with_name(f".{file.name}.tmp")
    stranger.write_bytes(b"of another program")
    assert recover(file) is None
    assert not left.exists()
    in_place(file, "swap(1:10)")
    undo(file)
    assert stranger.read_bytes() == b"of another program"
    assert file.read_bytes() == twelve.read_bytes()


def test_only_a_regular_file_under_its_own_name_is_changed(file: Path, torn: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    journal_path(torn).rename(journal_path(link))
    before = file.read_bytes()
    for action in (recover, undo):
        with pytest.raises(InputError, match="is a symbolic link; give its target"):
            action(link)
    journal_path(tmp_path).touch()
    with pytest.raises(InputError, match="is not a regular file"):
        recover(tmp_path)
    journal_path(tmp_path).unlink()
    journal_path(file).symlink_to(journal_path(link))
    with pytest.raises(InputError, match="is not a regular file; expected a journal or undo record"):
        recover(file)
    assert file.read_bytes() == before


def test_a_file_whose_name_leaves_no_room_for_a_journal_is_read(twelve: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'n' * 250}.gguf"
    long.write_bytes(twelve.read_bytes())
    assert read_header(long).architecture == "qwen3"


def test_a_journal_of_another_file_is_not_carried_through(twelve: Path, file: Path) -> None:
    in_place(file, "swap(1:10)")
    record = undo_paths(file)[0]
    file.write_bytes(b"x" * file.stat().st_size)
    record.rename(journal_path(file))
    with pytest.raises(InputError, match="has bytes or a size that"):
        recover(file)
    journal_path(file).write_text("{}")
    with pytest.raises(InputError, match="is not a journal or undo record written by tinyq"):
        recover(file)
    journal_path(file).unlink()
    file.write_bytes(twelve.read_bytes())
    in_place(file, "swap(1:10)")
    file.write_bytes(twelve.read_bytes())
    with pytest.raises(InputError, match="has changed since"):
        undo(file)


def test_a_file_that_may_not_be_written_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    planned = plan_in_place(plan_gguf(open_layered(file), parse_text("swap(0:1)")))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="cannot be changed in place"):
        apply_in_place(planned)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_without_room_for_the_journal_leaves_all_as_it_was(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            OutputError, match=r"could not be changed in place \(No space left.*; the file is unchanged"
        ):
            in_place(file, "swap(0:1)")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    in_place(file, "swap(0:1)")
    assert undo(file) == "swap(0:1)"
    assert file.read_bytes() == before
