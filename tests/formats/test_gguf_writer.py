"""Outputs appear whole or not at all: full disks, errors, interrupts and killed processes included."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import OutputError
from gguf_tools.formats.gguf.header import f32, read_header, string
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.formats.gguf.writer import GGUFFile, layout, write_gguf
from gguf_tools.formats.output import atomic_output, check_output
from quant.types import F16, F32

Copy = Callable[[Path], Path]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def attempt(path: Path, happens: BaseException | Callable[[], object], *, force: bool = False) -> None:
    """Writes three bytes, then something happens amid the output."""
    with atomic_output(path, force=force) as stream:
        stream.write(b"abc")
        if isinstance(happens, BaseException):
            raise happens
        happens()


def test_an_output_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    with atomic_output(path, size=3) as stream:
        stream.write(b"abc")
        assert not path.exists()
        (temporary,) = files(tmp_path)
        assert re.fullmatch(r"\.out\.gguf\.[0-9a-f]{16}\.tmp", temporary)
    assert path.read_bytes() == b"abc"
    assert files(tmp_path) == ["out.gguf"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        attempt(tmp_path / "out.gguf", error)
    assert files(tmp_path) == []


def test_an_error_leaves_an_older_output_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"older")
    with pytest.raises(ValueError, match="no"):
        attempt(path, ValueError("no"), force=True)
    assert path.read_bytes() == b"older"
    assert files(tmp_path) == ["out.gguf"]


def test_an_output_that_exists_is_refused_without_force(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"older")
    with pytest.raises(OutputError, match=r"out\.gguf: exists already; .*--force"), atomic_output(path):
        raise AssertionError("entered")
    with atomic_output(path, force=True) as stream:
        stream.write(b"newer")
    assert path.read_bytes() == b"newer"


def test_an_output_that_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    with pytest.raises(OutputError, match="exists already"):
        attempt(path, lambda: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert files(tmp_path) == ["out.gguf"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".", "is a folder"),
        ("gone/out.gguf", "gone does not exist; create it first"),
        ("file/out.gguf", "does not exist"),
    ],
)
def test_what_cannot_be_an_output_is_refused(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=expected):
        check_output(tmp_path / name, True)


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(OutputError, match="is not a regular file"):
            check_output(path, True)


def test_a_disk_that_is_too_small_is_noticed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999))
    with (
        pytest.raises(OutputError, match=r"needs 1,000 bytes, but the disk has 999 free"),
        atomic_output(tmp_path / "out.gguf", size=1000),
    ):
        raise AssertionError("entered")
    with atomic_output(tmp_path / "fits.gguf", size=999) as stream:
        stream.write(b"abc")
    assert files(tmp_path) == ["fits.gguf"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EIO, "Input/output error"), (errno.EDQUOT, "quota")],
)
def test_a_disk_that_fails_meanwhile_leaves_nothing(tmp_path: Path, number: int, reason: str) -> None:
    with pytest.raises(OutputError, match=reason) as raised:
        attempt(tmp_path / "out.gguf", OSError(number, os.strerror(number)))
    assert "nothing was left behind" in str(raised.value)
    assert files(tmp_path) == []


def test_a_disk_that_fills_at_the_very_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="the disk is full"), atomic_output(tmp_path / "out.gguf") as stream:
        stream.write(b"abc")
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["iterdir", "replace"])
def test_a_folder_that_may_not_be_read_or_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path if name == "iterdir" else os, name, fail)
    with (
        pytest.raises(OutputError, match=r"could not be written \(Permission denied\)"),
        atomic_output(tmp_path / "out.gguf"),
    ):
        assert name == "replace"
    monkeypatch.undo()
    assert files(tmp_path) == []


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    mark = "0123456789abcdef"
    others = [f".other.gguf.{mark}.tmp", ".out.gguf.tmp", f".out.gguf.{mark}0.tmp", ".out.gguf.12.tmp", "out.gguf.tmp"]
    for name in (*others, f".out.gguf.{mark}.tmp"):
        (tmp_path / name).write_bytes(b"left")
    with atomic_output(tmp_path / "out.gguf") as stream:
        stream.write(b"abc")
    assert files(tmp_path) == sorted([*others, "out.gguf"])


# The GGUF itself


def test_a_gguf_is_written_in_pieces_of_any_size(tmp_path: Path) -> None:
    first, second = np.arange(15, dtype=np.float32).reshape(3, 5), np.arange(7, dtype=np.float16)
    where = layout([("first", (3, 5), F32), ("second", (7,), F16)])
    metadata = {"general.architecture": string("x"), "x.y": f32(0.5)}
    told: list[int] = []
    pieces = [
        ("first", first[:1].view(np.uint8)),
        ("first", first[1:].view(np.uint8)),
        ("second", second.view(np.uint8)),
    ]
    path = tmp_path / "out.gguf"
    with path.open("wb") as stream:
        write_gguf(stream, metadata, where, pieces, told.append)
    assert told == [20, 40, 14]
    assert path.stat().st_size == where.size(metadata)
    assert read_header(path).metadata == metadata
    tensors = open_gguf(path).tensors
    np.testing.assert_array_equal(tensors["first"].array(), first)
    np.testing.assert_array_equal(tensors["second"].array(), second.astype(np.float32))


PIECE = np.zeros(8, np.uint8)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [("a", PIECE)],
        [("a", PIECE), ("b", PIECE[:4])],
        [("b", PIECE)],
        [("a", PIECE[:4]), ("b", PIECE)],
        [("a", np.zeros(9, np.uint8))],
        [("a", PIECE), ("b", PIECE), ("b", PIECE)],
    ],
)
def test_pieces_that_do_not_fit_are_a_fault_of_ours(tmp_path: Path, pieces: list[Any]) -> None:
    where = layout([("a", (2,), F32), ("b", (2,), F32)])
    with (tmp_path / "out").open("wb") as stream, pytest.raises((ValueError, StopIteration)):
        write_gguf(stream, {}, where, pieces, lambda _: None)


def test_threads_put_rows_in_any_order_and_a_short_write_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda to, data, at: whole(to, data[: max(1, len(data) // 2)], at))
    first, second = np.arange(3000, dtype=np.float32).reshape(100, 30), np.arange(7, dtype=np.float32).reshape(1, 7)
    where = layout([("first", (100, 30), F32), ("second", (1, 7), F32)])
    with (tmp_path / "out.gguf").open("w+b") as stream:
        file = GGUFFile(stream, {}, where)
        with ThreadPoolExecutor(4) as pool:
            rows = [("second", 0, second), *(("first", row, first[row : row + 4]) for row in range(96, -1, -4))]
            list(pool.map(lambda one: file.put_rows(one[0], one[1], one[2].view(np.uint8)), rows))
        file.finish()
    tensors = open_gguf(tmp_path / "out.gguf").tensors
    np.testing.assert_array_equal(tensors["first"].array(), first)
    np.testing.assert_array_equal(tensors["second"].array(), second)


def test_bytes_that_are_missing_or_outside_their_tensor_are_a_fault_of_ours(tmp_path: Path) -> None:
    with (tmp_path / "out.gguf").open("w+b") as stream:
        file = GGUFFile(stream, {}, layout([("a", (2,), F32), ("b", (2,), F32)]))
        for start in (-4, 4):
            with pytest.raises(ValueError, match="not within a"):
                file.put("a", start, PIECE)
        file.put("a", 0, PIECE)
        with pytest.raises(ValueError, match="8 bytes of the tensors were not written"):
            file.finish()


def test_a_name_that_ggml_cannot_keep_is_refused() -> None:
    with pytest.raises(OutputError, match="expected 63 at most, ggml's limit"):
        layout([("ü" * 32, (2,), F32)])


# A conversion


def test_a_refused_proof_leaves_nothing(qwen3_folder: Path, tmp_path: Path) -> None:
    seen: list[Path] = []

    def refuse(path: Path, _: object) -> None:
        seen.append(path)
        assert read_header(path).get("tinyq.source.digest") != "0" * 64
        raise OutputError("no")

    with pytest.raises(OutputError, match="no"):
        execute(prepare(Request(source=qwen3_folder, type="f32")), tmp_path / "out.gguf", prove=refuse)
    assert len(seen) == 1
    assert files(tmp_path) == []


def test_a_vocabulary_is_proved_before_the_weights_are_read(qwen3_folder: Path, tmp_path: Path) -> None:
    told: list[int] = []
    sizes: list[int] = []

    def refuse(path: Path, _: object) -> None:
        sizes.append(path.stat().st_size)
        raise OutputError("no")

    plan = prepare(Request(source=qwen3_folder, type="f32"))
    with pytest.raises(OutputError, match="no"):
        execute(plan, tmp_path / "out.gguf", prove_header=refuse, progress=told.append)
    assert (told, files(tmp_path)) == ([], [])
    done = execute(plan, tmp_path / "out.gguf", progress=told.append)
    assert sizes == [done.bytes]
    assert told


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "full")])
def test_an_error_amid_the_tensors_leaves_nothing(qwen3_folder: Path, tmp_path: Path, error: Any) -> None:
    told = []

    def progress(count: int) -> None:
        told.append(count)
        if len(told) == 5:
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else error):
        execute(prepare(Request(source=qwen3_folder, type="f32")), tmp_path / "out.gguf", progress=progress)
    assert len(told) == 5
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_the_source_is_never_overwritten(qwen3_folder: Path, copied: Copy, name: str) -> None:
    folder = copied(qwen3_folder)
    before = (folder / name).read_bytes()
    with pytest.raises(OutputError, match="is also an input of this command"):
        execute(prepare(Request(source=folder, type="f32")), folder / name, force=True)
    assert (folder / name).read_bytes() == before


KILLED = """
import sys, time
from pathlib import Path
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
def wait(_):
    print("writing", flush=True)
    time.sleep(60)
execute(prepare(Request(source=Path(sys.argv[1]), type="f32")), Path(sys.argv[2]), progress=wait)
"""


def test_a_killed_conversion_leaves_no_output_and_the_next_one_clears_up(qwen3_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with subprocess.Popen([sys.executable, "-c", KILLED, qwen3_folder, out], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.kill()
    (left,) = files(tmp_path)
    assert left.endswith(".tmp")
    execute(prepare(Request(source=qwen3_folder, type="f32")), out)
    assert files(tmp_path) == ["out.gguf"]
    assert time.time() - out.stat().st_mtime < 60
