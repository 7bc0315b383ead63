"""What SIGINT, SIGTERM and SIGHUP do to the `tinyq` command: one line, no traceback, and nothing left behind.

While a command runs, a signal becomes an exception, so that temporary files are removed on the way out. While the interpreter
still loads modules, and after the command has ended, there is nothing to remove: the process says so and is gone.
"""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False  # as typing has it, whose import takes time in which a signal would not be handled yet
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

HANDLED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 2.0
"""Seconds in which the same process ignores further signals, because it is cleaning up after the first."""


class EndedError(BaseException):
    """SIGTERM or SIGHUP arrived. No Exception, so that nothing takes it for a failure that can be handled."""


class _State:
    number = 0
    when = 0.0
    ran = False


def raise_them() -> None:
    """From now on signals raise: KeyboardInterrupt for SIGINT, EndedError for the others."""
    _State.number, _State.ran = 0, True
    _install(_raise)


def leave_at_once() -> None:
    """From now on a signal ends the process: nothing has been written yet, or all has been."""
    _install(_leave)


def received() -> int:
    """The number of the signal that arrived since `raise_them`, 0 where none did.

    What an import or an extension module made of the exception meanwhile does not matter then.
    """
    return _State.number


def exit_code(number: int) -> int:
    """What a shell reports of a process that a signal ended."""
    return 128 + number


def sentence(number: int) -> str:
    """What is said of a command that a signal ended."""
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
    if not _State.ran:  # of a finished command's output the line would be wrong
        os.write(2, f"tinyq: {sentence(number)}\n".encode())
    os._exit(exit_code(number))
