"""One request to the test hub and its answer: headers, bodies, ranges and faults."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import CHUNK, Fault
from tests.hub.repositories import Blob

if TYPE_CHECKING:
    from tests.hub.server import Hub


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that was answered: `sent` counts the bytes of the answer's body, `received` those of the request's."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    received: int
    token: str | None
    storage: bool


class Refusal(Exception):  # noqa: N818 - it is an answer, not an error of the server
    """An answer other than success, with the hub's headers that say why."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {**(headers or {}), "X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class BrokenTransfer(Exception):  # noqa: N818
    """A fault closed the connection."""


class Exchange(BaseHTTPRequestHandler):
    """Answers the requests of one connection; the routes are in `hub.routes`."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    storage = False
    """Whether this is the server of large files, which has another origin than the hub."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the requests are in `hub.requests`."""

    def answer(self) -> None:
        """Answer a request by its route, and record it."""
        number = self.hub.begin()
        url = urlsplit(self.path)
        self.url_path, self.query = unquote(url.path), {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.raw_path = url.path
        self.status, self.sent, self.received = 0, 0, 0
        self.drained = False
        self.fault = self.hub.faults.take(self.command, self.url_path)
        try:
            if self.fault and self.fault.raw:
                self._send_raw(self.fault)
            if self.fault and self.fault.status:
                raise Refusal(self.fault.status, "as the test asked", headers=self.fault.headers)
            self._dispatch()
        except Refusal as refusal:
            self.drain()
            self.send_json({"error": refusal.message}, refusal.status, refusal.headers)
        except (BrokenTransfer, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.hub.record(
                number,
                Request(
                    method=self.command,
                    path=self.url_path,
                    range=self.headers.get("Range"),
                    status=self.status,
                    sent=self.sent,
                    received=self.received,
                    token=self.token,
                    storage=self.storage,
                ),
            )

    def _send_raw(self, fault: Fault) -> None:
        """Send the bytes of a fault, until the client closes the connection."""
        for piece in fault.raw:
            self.wfile.write(piece)
            time.sleep(fault.delay)
        raise BrokenTransfer

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server calls

    def _dispatch(self) -> None:
        for method, pattern, route in self.hub.routes[self.storage]:
            match = re.fullmatch(pattern, self.url_path)
            if match and self.command in method:
                route(self, **match.groupdict())
                return
        raise Refusal(404, f"no route {self.command} {self.url_path}")

    @property
    def token(self) -> str | None:
        """The token of the Authorization header."""
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if scheme == "Bearer" else None

    def start(self, status: int, headers: Mapping[str, str], length: int) -> None:
        """Send the status and the headers of an answer whose body has `length` bytes."""
        self.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a JSON value."""
        body = json.dumps(value).encode()
        self.start(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)
            self.sent += len(body)

    def send_blob(self, blob: Blob, headers: Mapping[str, str]) -> None:
        """Answer with a file, or the part of it that the Range header asks for."""
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        start, end = 0, blob.size
        if asked and asked[1]:
            start, end = int(asked[1]), min(int(asked[2] or blob.size - 1) + 1, blob.size)
        elif asked and asked[2]:
            start = max(blob.size - int(asked[2]), 0)
        if asked and start >= end:
            raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{blob.size}"})
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
        self.start(206 if asked else 200, headers, end - start)
        if self.command != "HEAD":
            self._send_range(blob, start, end)

    def _send_range(self, blob: Blob, start: int, end: int) -> None:
        """Send these bytes of a file, with the request's fault."""
        stop = end
        if self.fault and self.fault.break_after is not None:
            stop = min(end, start + self.fault.break_after)
        while start < stop:
            if self.fault and self.fault.delay:
                time.sleep(self.fault.delay)
            data = blob.read(start, min(CHUNK, stop - start))
            self.wfile.write(data)
            self.sent += len(data)
            start += len(data)
        if stop < end:
            raise BrokenTransfer

    def body(self) -> bytes:
        """The request's body."""
        pieces = []
        limit = self.fault.break_after if self.fault else None
        for piece in self._body_pieces():
            self.received += len(piece)
            if self.fault and self.fault.delay:
                time.sleep(self.fault.delay)
            if limit is not None and self.received > limit:
                raise BrokenTransfer
            pieces.append(piece)
        return b"".join(pieces)

    def _body_pieces(self) -> Any:
        """The request's body in pieces, chunked or of a known length."""
        self.drained = True
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(CHUNK, left))
            if not piece:
                raise BrokenTransfer
            left -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read a body that no route has read, so that the next request of the connection can be read."""
        if not self.drained:
            for _ in self._body_pieces():
                pass

    def json_body(self) -> Any:
        """The JSON value in the request's body."""
        return json.loads(self.body() or b"null")
