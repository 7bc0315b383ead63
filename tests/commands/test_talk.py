"""`tinyq ask` and `tinyq chat`: what is printed where, pipes, a terminal with Ctrl-C and Ctrl-D, and wrong input."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gguf_tools
from gguf_tools.errors import InputError
from gguf_tools.runtime.interface import Sampling
from gguf_tools.runtime.process import Runtime
from tests.conftest import Ran

pty = pytest.importorskip("pty")
Tinyq = Callable[..., Ran]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make models write a text, one token a byte, and then end."""

    def script(text: str) -> None:
        coming: list[int] = []

        def next_token(self: Runtime, previous: int | None, sampling: Sampling | None) -> int:
            if previous is None:
                coming[:] = [*self.tokenize(text), self.info.eos or 0]
            return coming.pop(0)

        monkeypatch.setattr(Runtime, "next_token", next_token)

    return script


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Set what comes over the pipe."""
    return lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))


def test_an_answer_goes_to_stdout_and_a_thought_to_stderr(
    tinyq: Tinyq, chat: Path, says: Callable[[str], None]
) -> None:
    says("<think>Hm.\n</think>\n\nIt is\nParis.")
    assert tinyq("ask", chat, "Q?", "--thinking") == Ran(0, "It is\nParis.\n", "thinking: Hm.\n\n")
    assert tinyq("ask", chat, "Q?", "--thinking", "--quiet") == Ran(0, "It is\nParis.\n", "")


def test_control_characters_do_not_reach_the_terminal(tinyq: Tinyq, chat: Path, says: Callable[[str], None]) -> None:
    says("a\x1b[2Jb")
    assert tinyq("ask", chat, "Q?").out == "a\\x1b[2Jb\n"


def test_the_report_of_an_answer(tinyq: Tinyq, chat: Path, tmp_path: Path, says: Callable[[str], None]) -> None:
    says("Paris.")
    ran = tinyq("ask", chat, "Q?", "--json", "-", "--seed", "7")
    found = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert (found["question"], found["answer"], found["thought"], found["end"]) == ("Q?", "Paris.", None, "ended")
    assert found["sampling"] == {"temperature": 0.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "seed": 7}
    (tmp_path / "there.json").write_text("mine")
    ran = tinyq("ask", chat, "Q?", "--json", tmp_path / "there.json")
    assert (ran.code, ran.out, (tmp_path / "there.json").read_text()) == (2, "", "mine")


def test_a_real_answer_is_the_greedy_continuation(tinyq: Tinyq, chat: Path, chat_runtime: Runtime) -> None:
    prompt = chat_runtime.tokenize(
        chat_runtime.render_chat([{"role": "user", "content": "Hi"}], enable_thinking=False), parse_special=True
    )
    (expected,) = chat_runtime.greedy([prompt], 12, chat_runtime.info.eog)
    found = gguf_tools.ask(chat, "Hi", tokens=12)
    assert found.turn.tokens == len(expected.tokens)
    ran = tinyq("ask", chat, "Hi", "--tokens", "12")
    assert ran.code == 0
    if expected.tokens[-1] not in chat_runtime.info.eog:
        assert ran.err == "tinyq: cut off after 12 tokens; --tokens allows more\n"


def test_the_api_streams(chat: Path, says: Callable[[str], None]) -> None:
    says("Paris.")
    parts: list[tuple[str, str]] = []
    found = gguf_tools.ask(chat, "Q?", stream=lambda *piece: parts.append(piece))
    assert "".join(text for _, text in parts) == found.answer == str(found) == "Paris."
    with pytest.raises(InputError, match="--tokens is 0"):
        gguf_tools.ask(chat, "Q?", tokens=0)


@pytest.mark.parametrize(
    ("args", "data", "expected"),
    [
        (("ask", "{chat}", " "), b"", "the question is empty"),
        (("ask", "{chat}", "-"), b"\xff", "stdin: a message is not UTF-8 (byte 1 of it)"),
        (("ask", "{chat}", "-"), b" \n", "the question is empty"),
        (("ask", "{chat}", "-"), b"x" * 4_000_001, "stdin: a message has more than 4,000,000 bytes"),
        (("chat", "{chat}"), "\xe9".encode() * 2_000_001, "stdin: a message has more than 4,000,000 bytes"),
        (("ask", "{gone}", "Q"), b"", "does not exist; give a GGUF file"),
        (("ask", "{chat}", "Q", "--temperature", "-1"), b"", "temperature is -1.0; expected a number from 0 to 100"),
        (("ask", "{chat}", "x" * 300), b"", "tokens, but the context has 256"),
        (("ask", "{dense}", "Q", "--thinking"), b"", "has no thinking mode"),
        (("chat", "{gone}"), b"", "does not exist; give a GGUF file"),
        (("chat", "{chat}"), b"\xff\n", "stdin: a message is not UTF-8"),
        (("chat", "{chat}"), b"x" * 300, "tokens, but the context has 256"),
    ],
)
def test_wrong_input_is_one_line(
    tinyq: Tinyq,
    chat: Path,
    dense: Path,
    stdin: Callable[[bytes], None],
    args: tuple[str, ...],
    data: bytes,
    expected: str,
) -> None:
    stdin(data)
    ran = tinyq(*(arg.replace("{chat}", str(chat)).replace("{dense}", str(dense)) for arg in args))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("tinyq: ")
    assert expected in ran.err
    assert ran.err.count("\n") == 1


def test_a_question_from_stdin(
    tinyq: Tinyq, chat: Path, says: Callable[[str], None], stdin: Callable[[bytes], None]
) -> None:
    says("Paris.")
    stdin("Où ?\n".encode())
    found = json.loads(tinyq("ask", chat, "-", "--json", "-").out)
    assert found["question"] == "Où ?"


def test_a_chat_over_a_pipe(
    tinyq: Tinyq, chat: Path, tmp_path: Path, says: Callable[[str], None], stdin: Callable[[bytes], None]
) -> None:
    says("Paris.")
    stdin(b"one\n\n two\nthree")
    ran = tinyq("chat", chat, "--json", tmp_path / "chat.json")
    assert ran == Ran(0, "Paris.\n" * 3, "")
    turns = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert [turn["question"] for turn in turns] == ["one", "two", "three"]
    stdin(b"")
    assert tinyq("chat", chat) == Ran(0, "", "")


def test_a_full_context_is_said(
    tinyq: Tinyq, chat: Path, says: Callable[[str], None], stdin: Callable[[bytes], None]
) -> None:
    says("Paris. " * 8)
    stdin(b"one\ntwo\nthree\n")
    ran = tinyq("chat", chat)
    assert ran.err == "tinyq: the context of 256 tokens is full: the oldest 2 messages were left out\n" * 1


ENDLESS = """
import sys, time
from gguf_tools.runtime.process import Runtime
def next_token(self, previous, sampling):
    time.sleep(0.01)
    return self.tokenize("z")[0]
Runtime.next_token = next_token
from gguf_tools.commands import chat
chat.STEP_SECONDS = 0.1
from gguf_tools.cli import main
main(sys.argv[1:])
"""


class Terminal:
    """A command on a terminal of its own, killed at the end of a `with` block."""

    def __init__(self, *args: object) -> None:
        own, other = pty.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, *map(str, args)],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=_controlling,
        )
        os.close(other)
        self.own = own
        self.seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.own)

    def until(self, text: bytes, seconds: float = 120.0) -> None:
        """Read until the text has come."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.own], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} did not come after {self.seen!r}"
            self.seen += os.read(self.own, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def type(self, data: bytes) -> None:
        os.write(self.own, data)


def _controlling() -> None:
    """Make stdin the session's terminal, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_ends_an_answer_and_ctrl_d_the_chat(chat: Path) -> None:
    with Terminal("chat", chat, "--tokens", "100000", "--context", "200000") as terminal:
        terminal.until(b"Ctrl-C ends an answer, Ctrl-D the chat")
        terminal.until(b"> ")
        for _ in range(2):
            terminal.type(b"hello\n")
            terminal.until(b"zzz")
            terminal.type(b"\x03")
            terminal.until(b"tinyq: stopped")
            terminal.until(b"> ")
        terminal.type(b"half a line")
        terminal.until(b"half a line")  # once readline shows it: a Ctrl-C drops keys that it has not read yet
        terminal.type(b"\x03")
        terminal.until(b"(Ctrl-D ends the chat)")
        terminal.until(b"> ")
        terminal.type(b"\x04")
        assert terminal.child.wait(60) == 0


def test_sigterm_ends_a_chat(chat: Path) -> None:
    with Terminal("chat", chat) as terminal:
        terminal.until(b"> ")
        terminal.child.send_signal(signal.SIGTERM)
        terminal.until(b"ended by SIGTERM")
        assert terminal.child.wait(60) == 143


def test_what_is_typed_in_another_encoding_is_said_so(chat: Path) -> None:
    with Terminal("chat", chat) as terminal:
        terminal.until(b"> ")
        terminal.type(b"\xff\xfe\n")
        terminal.until(b"what was typed is not UTF-8")
        terminal.until(b"> ")
        terminal.type(b"\x04")
        assert terminal.child.wait(60) == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
def test_another_ctrl_c_ends_a_chat_whose_llama_cpp_hangs(chat: Path) -> None:
    with Terminal("chat", chat, "--tokens", "100000", "--context", "200000") as terminal:
        terminal.until(b"> ")
        terminal.type(b"hello\n")
        terminal.until(b"zzz")
        pid = terminal.child.pid
        (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGSTOP)
        terminal.type(b"\x03")
        terminal.until(b"^C")
        time.sleep(0.2)
        terminal.type(b"\x03")
        terminal.until(b"interrupted")
        assert terminal.child.wait(60) == 130
        assert not Path(f"/proc/{worker}").exists()
