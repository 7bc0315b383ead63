"""Limits on memory, files, processes and threads: one line that names the limit, never an internal error."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_tools import cli
from gguf_tools.errors import MEMORY, PROCESSES, LlamaError, OutputError
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.runtime.child import Child
from tests.conftest import Ran

Tinyq = Callable[..., Ran]
LIMITED = (
    sys.executable,
    "-c",
    "import os, resource as r, sys; r.setrlimit(r.RLIMIT_AS, (int(sys.argv[1]),) * 2); os.execv(sys.argv[2], sys.argv[2:])",
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; no output was left behind; free memory, raise its limit"),
        (ImportError("libz.so.1: failed to map segment from shared object"), "out of memory; no output"),
        (RuntimeError("can't start new thread"), "no process or thread could be started; no output"),
        (OSError(errno.EMFILE, "Too many open files", "a.gguf"), "a.gguf: too many files are open; no output"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory; no output"),
    ],
)
def test_what_the_process_lacks_is_no_fault_of_ours(
    tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(**_: Any) -> None:
        raise error

    def wrapped(**_: Any) -> None:
        raise OutputError("b.gguf: could not be written") from error

    monkeypatch.setattr(cli.tinyq, "main", fail)
    ran = tinyq("convert")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"tinyq: {said}" in ran.err
    monkeypatch.setattr(cli.tinyq, "main", wrapped)
    advice = ran.err.partition("left behind; ")[2]
    assert tinyq("convert") == Ran(2, "", f"tinyq: b.gguf: could not be written; {advice}")


def test_a_limit_that_numpy_cannot_be_imported_under_is_one_line() -> None:
    """OpenBLAS would end the process itself, with lines of its own."""
    limited = [*LIMITED, str(100 << 20), sys.executable, "-m", "gguf_tools", "inspect", "none"]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("tinyq: the address space is limited to 100 MiB, and tinyq needs 192 MiB at least; ")
    assert done.stderr.count("\n") == 1


def test_a_limit_on_memory_keeps_openblas_from_starting_threads() -> None:
    code = "import os; from gguf_tools.machine import prepare_for_limits as p; p(); print(os.environ['OPENBLAS_NUM_THREADS'])"
    limited = [*LIMITED, str(400 << 20), sys.executable, "-c", code]
    assert subprocess.run(limited, capture_output=True, text=True, check=True).stdout == "1\n"


def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_not_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert is_gguf(tmp_path / "a.gguf")

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gguf_tools.formats.gguf.header.open_raw", fail)
    with pytest.raises(OSError, match="Too many open files"):
        is_gguf(tmp_path / "a.gguf")


def test_llama_cpp_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(LlamaError) as caught:
        Child(tmp_path / "a.gguf").start()
    said = f"a.gguf: llama.cpp cannot be started: no process can be started (Resource temporarily unavailable); {PROCESSES[1]}"
    assert str(caught.value).endswith(said)


def test_a_process_of_llama_cpp_that_has_no_memory_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says once what is wrong, though the log and the answer both have it."""
    child = Child(tmp_path / "a.gguf")
    said = "ImportError: libz.so.1: failed to map segment from shared object"
    monkeypatch.setattr(child, "log_size", lambda: len(said))
    monkeypatch.setattr(child, "read_log", lambda *_: said)
    assert child._message("load", said, 0) == f"{tmp_path}/a.gguf: llama.cpp failed (load): {said}; {MEMORY[1]}"


def test_a_current_folder_that_was_removed_is_one_line(
    tinyq: Tinyq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = "tinyq: the current folder was removed; change to another one (cd)\n"
    assert tinyq("inspect", tmp_path) == Ran(2, "", said)
