"""What goes wrong on request: error responses, broken and slow transfers, expired links."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Fault:
    """Something that goes wrong with the next `times` requests whose method is `method` and whose path matches `path`.

    `raw` sends these bytes as they are, with `delay` seconds after each piece, and closes the connection; `status` answers with
    that code (and `headers`) instead of the content; `break_after` closes the connection after so many
    bytes of the content, sent or received; `delay` waits so many seconds before each chunk of `CHUNK` bytes; `skip` lets so
    many matching requests pass first.
    """

    path: str
    method: str = "GET"
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    break_after: int | None = None
    delay: float = 0.0
    raw: Sequence[bytes] = ()

    def matches(self, method: str, path: str) -> bool:
        """Whether the fault concerns a request. Faults that have occurred `times` times concern none."""
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


def whole(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """An answer of HTTP with this body, for `Fault.raw`; each of the headers ends with a line break."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode("latin-1") + body


CHUNK = 64 << 10
"""Bytes that the server sends at once."""


class Faults:
    """The faults that are still to occur."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Let a fault occur."""
        with self._lock:
            self._waiting.append(fault)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of a request, which occurs once less afterwards; None if nothing goes wrong."""
        with self._lock:
            for fault in self._waiting:
                if not fault.matches(method, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    @property
    def left(self) -> int:
        """How many times faults are still to occur."""
        return sum(fault.times for fault in self._waiting)
