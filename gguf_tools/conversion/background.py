"""Runs one function in a background thread, and cancels it if the main work ends early."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs `function(cancelled)` in a thread; leaving the block makes `cancelled()` true and joins the thread."""

    def __init__(self, function: Callable[[Callable[[], bool]], T]) -> None:
        self._stop = Event()
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(function, self._stop.is_set)

    def __enter__(self) -> Background[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown()

    def result(self) -> T:
        """Wait for the function and return its result, or raise its exception."""
        return self._future.result()
