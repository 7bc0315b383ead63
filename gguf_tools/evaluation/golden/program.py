"""Runs a program that the user names, with bounds on what it prints and how long it takes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO

from gguf_tools.errors import InputError
from gguf_tools.runtime.silence import current_limit
from gguf_tools.text import one_line, shortened

MOST_PRINTED = 1 << 24
"""Most bytes that a program may print."""
PIECE = 1 << 16
"""Bytes that are read at a time, and that are kept of stderr."""
TICK = 0.05
"""Seconds after which it is looked again whether the program has ended."""
AFTERWARDS = 2.0
"""Seconds for which the end of the pipes is waited for after the program was ended."""


class _Pipe:
    """What comes through a pipe, read by a thread: all up to `MOST_PRINTED` bytes, or the last `PIECE`."""

    def __init__(self, stream: IO[bytes] | None, *, last: bool = False) -> None:
        self.data = bytearray()
        self._stream, self._last = stream, last
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self._stream and not self.full and (piece := os.read(self._stream.fileno(), PIECE)):
                self.data += piece
                if self._last:
                    del self.data[:-PIECE]

    @property
    def full(self) -> bool:
        """Whether more came than is allowed."""
        return len(self.data) > MOST_PRINTED


def printed(line: Sequence[str]) -> str:
    """What a program prints on stdout; `line` is its path and its arguments.

    It has a process group of its own, which is killed in the end, so that nothing that it started stays. Raises InputError if it
    cannot be run, fails, prints too much, or does not end within --timeout.
    """
    name, limit = line[0], current_limit()
    try:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"the command {name} cannot be run ({one_line(str(error))}); give another --command"
        ) from error
    out, err = _Pipe(process.stdout), _Pipe(process.stderr, last=True)
    began = time.monotonic()
    try:
        while process.poll() is None and not out.full:
            if limit is not None and time.monotonic() - began > limit:
                raise InputError(f"the command {name} did not end within {limit:g} s; give a longer --timeout")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
    finally:
        _end(process)
        for pipe in (out, err):
            pipe.thread.join(AFTERWARDS)
    if out.full:
        raise InputError(f"the command {name} printed more than {MOST_PRINTED >> 20} MiB; expected token ids")
    if process.returncode:
        last = (err.data.decode(errors="replace").strip().splitlines() or [""])[-1]
        raise InputError(
            f"the command {name} ended with exit code {process.returncode}: {shortened(one_line(last), 200)}"
        )
    return out.data.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program and of what it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
