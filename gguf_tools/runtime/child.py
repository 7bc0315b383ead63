"""A llama.cpp process: started, asked over a pair of pipes, and ended; each failure is one line with its cause.

llama.cpp's assertions abort their process, so it must not open untrusted files in this one. `Child` starts
`gguf_tools.runtime.worker` and turns every failure there into a LlamaError with the file, the operation and the cause from
llama.cpp's log.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from io import RawIOBase
from pathlib import Path
from typing import Any, cast

from gguf_tools import signals
from gguf_tools.errors import PROCESSES, CheckpointError, InputError, LlamaError, TinyqError, exhausted_in_words
from gguf_tools.formats.scratch import ADVICE, unnamed_file
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.channel import (
    Array,
    ChannelClosedError,
    Frame,
    NoFrameError,
    await_begin,
    read_frame,
    write_frame,
)
from gguf_tools.runtime.log import decisive_lines, last_lines
from gguf_tools.runtime.silence import Silence
from quant.installed import require_llama_cpp

PURPOSE = "run GGUF files"
"""What llama-cpp-python is needed for here, as its absence is explained."""
_ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 1 << 20
_DYING_SECONDS = 5.0


class Child:
    """A process for the file `path`, which errors name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = False

    def start(self) -> None:
        """Start the process; LlamaError where llama-cpp-python is missing or too old, or no log can be made."""
        require_llama_cpp(PURPOSE)
        self._begun = False
        starter = "main" if threading.current_thread() is threading.main_thread() else "thread"
        with signals.held():
            try:
                # A file rather than a pipe: nothing has to read it meanwhile, and it is complete after the process has died.
                self._log = unnamed_file("tinyq-llama.cpp-log")
            except OSError as error:
                raise LlamaError(
                    f"{self.path}: llama.cpp cannot be started: cannot create a file for its log ({error.strerror}); {ADVICE}"
                ) from error
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "gguf_tools.runtime.worker", str(os.getpid()), starter],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._log,
                    bufsize=0,
                    cwd=_ROOT,  # where `-m` finds this package, and no user's file shadows a module
                    env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONSAFEPATH": ""},
                )
            except OSError as error:
                self._log.close()
                raise LlamaError(
                    f"{self.path}: llama.cpp cannot be started: no process can be started ({error.strerror}); {PROCESSES[1]}"
                ) from error

    def close(self) -> None:
        """Kill the process; it has nothing to save."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        self._log.close()

    def stop(self) -> None:
        """Kill the process, from any thread: a call that is running then fails with LlamaError."""
        if process := self._process:
            process.kill()

    @property
    def pid(self) -> int | None:
        """The process id, or None if it is not running."""
        return None if self._process is None else self._process.pid

    def call(
        self,
        op: str,
        header: dict[str, Any],
        array: Array | None = None,
        progress: CountProgress | None = None,
        timeout: float | None = None,
    ) -> Frame:
        """Send a request and return the answer.

        The process is killed if it sends no frame for `timeout` seconds. Raises LlamaError if llama.cpp fails or the process
        ends, and InputError if the worker refuses the request.
        """
        process = self._process
        if process is None:
            raise LlamaError(
                f"{self.path}: llama.cpp is not running (its process was closed or has died); create a new Runtime"
            )
        log_start = self.log_size()
        silence = Silence(timeout, process.kill)
        try:
            with silence:
                write_frame(cast(RawIOBase, process.stdin), {"op": op, **header}, array)
                if not self._begun:
                    await_begin(cast(RawIOBase, process.stdout))
                    self._begun = True
                while (frame := read_frame(cast(RawIOBase, process.stdout))).header.get("kind") == "progress":
                    silence.sign()
                    if progress is not None:
                        progress(frame.header["done"], frame.header["total"])
        except NoFrameError as error:
            message = self._message(op, f"its process sent what is no answer ({error})", log_start, ended=True)
            self.close()
            raise LlamaError(message) from error
        except ChannelClosedError:
            raise self._died(op, process, log_start, silence) from None
        except BaseException:
            # Interrupted inside an answer: its remaining bytes would be read as the next answer.
            self.close()
            raise
        if frame.header.get("kind") == "refused":
            raise InputError(f"{self.path}: {frame.header['message']}")
        if frame.header.get("kind") == "error":
            raise LlamaError(self._message(op, frame.header["message"], log_start))
        return frame

    def _died(self, op: str, process: subprocess.Popen[bytes], log_start: int, silence: Silence) -> LlamaError:
        """Close a worker that ended during `op`; returns the error, with how it ended and its log from byte `log_start`."""
        try:
            code = process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if silence.passed:
            how = f"made no progress for {silence.seconds:g} s and was stopped (see --timeout)"
        elif code < 0:
            name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else str(-code)
            how = f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        else:
            how = f"ended with exit code {code}"
        message = self._message(op, f"its process {how}", log_start, ended=True)
        self.close()
        why = _contradiction(self.path) if code < 0 and not silence.passed else ""
        return LlamaError(f"{message}; {why}" if why else message)

    def _message(self, op: str, problem: str, log_start: int, *, ended: bool = False) -> str:
        size = self.log_size()
        first = max(size - _LOG_TAIL, 0)
        reason = decisive_lines(self.read_log(max(log_start, first), size))
        if ended and not reason:
            reason = last_lines(self.read_log(first, size))
        line = f"{self.path}: llama.cpp failed ({op}): {problem}" + (f": {reason}" if reason not in problem else "")
        lack = exhausted_in_words(line)
        return " ".join(line.split()) + (f"; {lack[1]}" if lack else "")

    def log_size(self) -> int:
        """Bytes of llama.cpp's log so far."""
        return os.fstat(self._log.fileno()).st_size

    def read_log(self, start: int, end: int) -> str:
        """These bytes of llama.cpp's log."""
        return os.pread(self._log.fileno(), end - start, start).decode("utf-8", errors="replace")


def _contradiction(path: Path) -> str:
    """What tinyq finds wrong in a file on which llama.cpp's process ended; "" if nothing."""
    from gguf_tools.formats.gguf.source import open_gguf
    from gguf_tools.targets.registry import lift

    try:
        lift(open_gguf(path))
    except CheckpointError as error:
        return str(error).replace(f"{path}: ", "")
    except TinyqError:
        pass
    return ""
