"""Limits on CPU time and memory for untrusted code that runs in this process."""

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
    """The time limit is exceeded. Not an Exception, so that no `except Exception` in the bounded code catches it."""


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Raise TimeExceededError after `seconds` of CPU time, MemoryError beyond `memory` additional bytes of address space.

    Python handles the timer's signal between two bytecode instructions, so a single endless C call is not interrupted. For the
    main thread only. On systems without these limits the block runs without them.
    """
    with _time(seconds), _memory(memory):
        yield


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    """Raise TimeExceededError after `seconds` of CPU time; no limit on systems without interval timers."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def over(_number: int, _frame: FrameType | None) -> None:
        raise TimeExceededError

    before = signal.signal(signal.SIGPROF, over)
    # Repeated every second: an exception raised in a destructor or callback is only printed by Python, and lost.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def _memory(more: int) -> Iterator[None]:
    """Allow `more` bytes of address space beyond those in use; no limit if the system does not report those in use."""
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
    """Bytes of address space in use by this process; None if the system does not report them."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
