"""What a terminal sees of a command's progress."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from gguf_tools import convert
from gguf_tools.commands.common import stage_bars
from gguf_tools.text import duration


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    """A terminal that was closed, whose descriptor is another file's."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = path.open("wb", buffering=0)

    def write(self, text: str) -> int:
        os.write(self.file.fileno(), text.encode())
        raise OSError(errno.EIO, "Input/output error")

    def fileno(self) -> int:
        return self.file.fileno()


def test_a_terminal_that_is_closed_ends_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (gone := Gone(tmp_path / "shown")).file:
        monkeypatch.setattr(sys, "stderr", gone)
        with stage_bars(quiet=False) as progress:
            assert progress
            for done in range(3):
                progress("tensors", done, 3)
                progress("writing", done, 2000)
    shown = (tmp_path / "shown").read_text()
    assert "tensors 0 of 3" in shown
    assert "writing" not in shown


def terminal(patch: pytest.MonkeyPatch) -> Terminal:
    """stderr as a terminal; to be called within a test, since pytest puts its own streams in place before each."""
    stream = Terminal()
    patch.setattr(sys, "stderr", stream)
    return stream


def test_bytes_are_a_bar_and_all_else_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with stage_bars(quiet=False) as progress:
        assert progress
        progress("tensors", 1, 3)
        progress("tensors", 3, 3)
        progress("writing", 0, 2000)
        progress("writing", 500, 2000)
        progress("writing", 2000, 2000)
    shown = stream.getvalue()
    line, bar = shown.split("writing", 1)
    assert "tensors 1 of 3 (33%)\r\033[Ktensors 3 of 3 (100%)\r\033[K" in line
    assert "500 B of 2.0 kB" in bar
    assert "100%" in bar
    assert bar.count("2.0 kB of 2.0 kB") >= 1
    assert "tensors" not in bar


def test_a_line_says_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    times = iter([100.0, 104.0, 130.0, 148.0])
    monkeypatch.setattr("gguf_tools.commands.common.time.monotonic", lambda: next(times))
    with stage_bars(quiet=False) as progress:
        assert progress
        for done in (0, 1, 10, 12):
            progress("measuring", done, 73 if done < 12 else 12)
    assert stream.getvalue().split("\r\033[K")[1:-1] == [
        "measuring 0 of 73 (0%)",
        "measuring 1 of 73 (1%), about 5 min left",
        "measuring 10 of 73 (14%), about 3 min left",
        "measuring 12 of 12 (100%)",
    ]
    assert [duration(seconds) for seconds in (5.4, 89.0, 90.0, 7500.0)] == ["5 s", "89 s", "2 min", "2 h 5 min"]


def test_a_conversion_shows_both_of_its_stages(
    monkeypatch: pytest.MonkeyPatch, qwen3_folder: Path, tmp_path: Path
) -> None:
    stream = terminal(monkeypatch)
    with stage_bars(quiet=False) as progress:
        convert(qwen3_folder, tmp_path / "a.gguf", progress=progress)
    shown = stream.getvalue()
    assert shown.index("reading") < shown.index("writing")
    assert shown.count("100%") >= 2


def test_an_error_ends_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)

    def fail() -> None:
        with stage_bars(quiet=False) as progress:
            assert progress
            progress("questions", 1, 3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stream.getvalue().endswith("\r\033[K")


def test_quiet_and_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    with stage_bars(quiet=True) as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with stage_bars(quiet=False) as progress:
        assert progress is None


def test_the_file_is_named_in_one_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "60")
    with stage_bars(False, "a-model-with-a-very-long-name-that-no-terminal-holds-q4_k_m.gguf") as progress:
        assert progress
        progress("questions", 3, 17)
    line = stream.getvalue().split("\r\033[K")[1]
    assert len(line) < 60
    assert line.startswith("a-model-with-a")
    assert line.endswith("q4_k_m.gguf: questions 3 of 17 (18%)")
