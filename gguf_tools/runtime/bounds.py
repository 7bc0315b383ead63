"""Running something untrusted in this process within limits on time and memory."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


class TimeExceededError(BaseException):
    """The time is up. No Exception, so that nothing between here and the limit handles it."""


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Raise TimeExceededError after `seconds` of computing, MemoryError beyond `memory` more bytes of address space.

    The time is noticed between two steps of the interpreter: a single operation that takes for ever is not stopped. Only for
    the main thread; where the system has no such limits there are none.
    """
    with _time(seconds), _memory(memory):
        yield


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Raise TimeExceededError after `seconds` of CPU time; no bound where the system has no interval timers."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def over(_number: int, _frame: FrameType | None) -> None:
        raise TimeExceededError

    before = signal.signal(signal.SIGPROF, over)
    # Once more every second, should the first be lost in a place where Python only prints what is raised.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _memory(more: int) -> Iterator[None]:
    """Allow `more` bytes of address space beyond what is in use; no bound where the system does not tell what is."""
    used = _address_space()
    if resource is None or used is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([used + more, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    """Bytes of address space that this process has; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
