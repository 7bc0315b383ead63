"""Threads that end with the process: unlike a pool's, they are not waited for after Ctrl-C while a server does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import TypeVar

from gguf_tools import signals
from gguf_tools.sources.hub.client import HubError

TICK = 0.2
"""Seconds after which whoever waits looks whether the command has been interrupted."""

S = TypeVar("S")
T = TypeVar("T")


def started(function: Callable[[], T]) -> Future[T]:
    """The future result of a function, which a thread runs."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(function, future), daemon=True).start()
    return future


def _run(function: Callable[[], T], future: Future[T]) -> None:
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def waited(future: Future[T]) -> T:
    """A future's result or its error. Raises HubError once the command has been interrupted."""
    while not future.done():
        wait([future], timeout=TICK)
        if signals.received() and not future.done():
            raise HubError("interrupted while a file of the hub was read")
    return future.result()


def within(seconds: float | None, function: Callable[[], T]) -> T:
    """The result of a function, which a thread runs. Raises TimeoutError after `seconds`, its own error if it fails before.

    For requests whose server may send a byte now and then without end, which no timeout of a socket notices. The thread goes on.
    """
    future = started(function)
    if future not in wait([future], timeout=seconds).done:
        raise TimeoutError
    return future.result()


def for_each(function: Callable[[S], object], items: Iterable[S], at_once: int) -> None:
    """Call the function with each item, in `at_once` threads. Raises the first error."""
    left = list(items)

    def work() -> None:
        while left:
            try:
                item = left.pop(0)
            except IndexError:  # another thread took it
                return
            function(item)

    for future in [started(work) for _ in range(min(at_once, len(left)))]:
        waited(future)
