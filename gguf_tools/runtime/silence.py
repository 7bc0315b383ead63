"""Ending a llama.cpp process that makes no progress."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

DEFAULT_SECONDS = 600.0
LONGEST_SECONDS = 1e9
"""What a longer limit is taken for; threads and sockets wait for about ten times as long at most."""
_SLICE = 0.5


class _Limit:
    seconds: float | None = DEFAULT_SECONDS


def current_limit() -> float | None:
    """The default of `RuntimeOptions.timeout`: seconds without a message after which a process is killed; None means never."""
    return _Limit.seconds


@contextlib.contextmanager
def silence_limit(seconds: float | None) -> Iterator[None]:
    """Set the value of `current_limit` to `seconds`, in all threads, until the block ends."""
    before, _Limit.seconds = _Limit.seconds, None if seconds is None else min(seconds, LONGEST_SECONDS)
    try:
        yield
    finally:
        _Limit.seconds = before


class Silence:
    """A context manager that calls `end` from another thread when `seconds` pass without a call of `sign`.

    Time is counted in short intervals while this process runs, so that the time during which it was suspended together with
    the child does not count.
    """

    def __init__(self, seconds: float | None, end: Callable[[], None]) -> None:
        self.seconds = seconds
        self.passed = False
        self._end = end
        self._silent = 0.0
        self._over = threading.Event()

    def __enter__(self) -> Silence:
        if self.seconds is not None:
            threading.Thread(target=self._watch, args=(self.seconds,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def sign(self) -> None:
        """Reset the count: the process has sent a message."""
        self._silent = 0.0

    def _watch(self, seconds: float) -> None:
        step = min(_SLICE, seconds)
        while not self._over.wait(step):
            self._silent += step
            if self._silent >= seconds:
                self.passed = True
                self._end()
                return
