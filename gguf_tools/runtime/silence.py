"""Ending a llama.cpp process that gives no sign of work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

DEFAULT_SECONDS = 600.0
_SLICE = 0.5


class _Limit:
    seconds: float | None = DEFAULT_SECONDS


def current_limit() -> float | None:
    """Seconds of silence after which a process counts as hung where nothing else is asked for; None waits for ever."""
    return _Limit.seconds


@contextlib.contextmanager
def silence_limit(seconds: float | None) -> Iterator[None]:
    """Makes `seconds` what `current_limit` gives, in all threads, until the block ends."""
    before, _Limit.seconds = _Limit.seconds, seconds
    try:
        yield
    finally:
        _Limit.seconds = before


class Silence:
    """A context manager that calls `end`, from another thread, once `seconds` pass without a `sign`.

    Time is counted in slices while this process runs: one that was stopped for an hour with its child does not, when it goes
    on, take that hour for the child's silence.
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
        """The process has shown that it works."""
        self._silent = 0.0

    def _watch(self, seconds: float) -> None:
        step = min(_SLICE, seconds)
        while not self._over.wait(step):
            self._silent += step
            if self._silent >= seconds:
                self.passed = True
                self._end()
                return
