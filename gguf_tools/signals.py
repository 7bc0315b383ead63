"""Handling SIGINT, SIGTERM and SIGHUP in the `tinyq` command: a one-line message, no traceback, no temporary files left.

While a command runs, a signal raises an exception, so that temporary files are removed. While modules are imported, and after
the command has ended, there is nothing to remove, and the process exits immediately.
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False  # as in `typing`, whose import takes time during which signals would not be handled yet
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 2.0
"""Seconds for which further signals are ignored, because the process is cleaning up after the first."""


class EndedError(BaseException):
    """SIGTERM or SIGHUP arrived. Not an Exception, so that no `except Exception` handles it."""


class _State:
    number = 0
    when = 0.0
    ran = False


def raise_them() -> None:
    """Make signals raise exceptions: KeyboardInterrupt for SIGINT, EndedError for the others."""
    _State.number, _State.ran = 0, True
    _install(_raise)


def leave_at_once() -> None:
    """Make signals end the process immediately; for the time before any output is begun and after all is complete."""
    _install(_leave)


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
    return f"{how}; no output was left behind"


def _install(handler: signal._HANDLER) -> None:
    for number in HANDLED:
        # nohup, and shells without job control, start a program with signals ignored on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.number and now - _State.when < GRACE:
        return
    _State.number, _State.when = number, now
    raise KeyboardInterrupt if number == signal.SIGINT else EndedError


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    if not _State.ran:  # after a finished command the message would be wrong: its output exists
        os.write(2, f"tinyq: {sentence(number)}\n".encode())
    os._exit(exit_code(number))
