"""Handling SIGINT, SIGTERM, SIGHUP and SIGXCPU in the `tinyq` command: a one-line message, no traceback, no temporary files left.

While a command runs, a signal raises an exception, so that temporary files are removed. In a `held` block, such as between the
creation of a file and the recording of its name, it is deferred to the end of the block. While modules are imported, and after
the command has ended, there is nothing to remove, and the process exits immediately.
"""

from __future__ import annotations

import _thread
import os
import signal
import time

TYPE_CHECKING = False  # as in `typing`, whose import takes time during which signals would not be handled yet
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import NoReturn

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name))
GRACE = 2.0
"""Seconds for which further signals are ignored, because the process is cleaning up after the first."""


class EndedError(BaseException):
    """SIGTERM, SIGHUP or SIGXCPU arrived. Not an Exception, so that no `except Exception` handles it."""


class _State:
    number = 0
    when = 0.0
    ran = False
    thread = 0
    """The thread in which Python handles signals."""
    held = 0
    waiting = 0
    written: dict[str, None] = {}  # noqa: RUF012


class held:  # noqa: N801
    """A block in which a signal waits until its end; it must be short. Only the main thread is concerned."""

    def __enter__(self) -> None:
        if _thread.get_ident() == _State.thread:
            _State.held += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _thread.get_ident() != _State.thread:
            return
        _State.held -= 1
        if _State.waiting and not _State.held:
            number, _State.waiting = _State.waiting, 0
            _raise(number, None)


def wrote(path: str | os.PathLike[str]) -> None:
    """Record that an output has its name, so that a command that is interrupted later does not say that there is none."""
    _State.written[os.fspath(path)] = None


def withdrew(path: str | os.PathLike[str]) -> None:
    """Record that an output is gone again, or as it was before."""
    _State.written.pop(os.fspath(path), None)


def forget() -> None:
    """A command begins: nothing has been written."""
    _State.written.clear()


def left() -> str:
    """What is said of the outputs of a command that did not come to its end."""
    there = [path for path in _State.written if os.path.lexists(path)]
    if not there:
        return "no output was left behind"
    more = f" and {len(there) - 1} more" if len(there) > 1 else ""
    return f"{there[0]}{more} had been written before, complete"


def raise_them() -> None:
    """Make signals raise exceptions: KeyboardInterrupt for SIGINT, EndedError for the others."""
    _State.number, _State.ran, _State.thread = 0, True, _thread.get_ident()
    _State.held = _State.waiting = 0
    _install(_raise)


def leave_at_once() -> None:
    """Make signals end the process immediately; for the time before any output is begun and after all is complete."""
    _install(_leave)


def ignore_them() -> None:
    """Make signals change nothing any more: one has ended the command, all is cleared up, and the exit code is known.

    Python restores the default handlers while it ends, with which another signal would end the process with its own code.
    """
    _install(signal.SIG_IGN)


def received() -> int:
    """The number of the signal that arrived since `raise_them`, or 0.

    It is recorded because imports and extension modules may turn the exception into another one.
    """
    return _State.number


def exit_code(number: int) -> int:
    """The exit code that shells report for a process ended by this signal."""
    return 128 + number


def sentence(number: int) -> str:
    """The message for a command ended by this signal."""
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    if how.endswith("SIGXCPU"):
        how += " (the limit on processor time, ulimit -t)"
    return f"{how}; {left()}"


def _install(handler: signal._HANDLER) -> None:
    for number in HANDLED:
        # nohup, and shells without job control, start a program with signals ignored on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.held:
        _State.waiting = _State.waiting or number
        return
    if _State.number and now - _State.when < GRACE:
        return
    _State.number, _State.when = number, now
    raise KeyboardInterrupt if number == signal.SIGINT else EndedError


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    if not _State.ran:  # after a finished command the message would be wrong: its output exists
        os.write(2, f"tinyq: {sentence(number)}\n".encode())
    os._exit(exit_code(number))
