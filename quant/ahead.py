"""Applies a function to items on several threads, in order and with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def map_ahead(pool: Executor, window: int, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`function` of each item, in order; at most `window` items are taken before the first result is used.

    `items` is iterated in the caller's thread. The first error (of the function or of the iterable) is raised here; the items
    after it are dropped.
    """
    pending: deque[Future[U]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
