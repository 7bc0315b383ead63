"""The test hub: two servers on loopback, one for the hub's routes and one for large files, each in a thread."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.hub import reading, writing
from tests.hub.exchange import Exchange, Request
from tests.hub.faults import Fault, Faults
from tests.hub.repositories import Blob, Repository, StoredFile, stored

PATIENCE = 10.0
"""Seconds for which answers that are being sent are waited for before requests are listed."""
Route = tuple[tuple[str, ...], str, Callable[..., None]]
NAME = r"(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
API = f"/api/models/{NAME}"
READ, POST, PUT = ("GET", "HEAD"), ("POST",), ("PUT",)
HUB_ROUTES: tuple[Route, ...] = (
    (READ, f"/api/resolve-cache/models/{NAME}/{REVISION}/(?P<path>.+)", reading.resolve_cache),
    (READ, "/api/whoami-v2", reading.whoami),
    (READ, API, reading.info),
    (READ, f"{API}/revision/(?P<revision>.+)", reading.info),
    (READ, f"{API}/refs", reading.refs),
    (READ, f"{API}/tree/{REVISION}(?P<path>/.*)?", reading.tree),
    (POST, f"{API}/paths-info/{REVISION}", reading.paths_info),
    (POST, "/api/repos/create", writing.create),
    (POST, "/api/validate-yaml", writing.validate_yaml),
    (POST, f"{API}/branch/(?P<revision>.+)", writing.branch),
    (POST, f"{API}/preupload/(?P<revision>.+)", writing.preupload),
    (POST, f"{API}/commit/(?P<revision>.+)", writing.commit),
    (POST, f"/{NAME}\\.git/info/lfs/objects/batch", writing.lfs_batch),
    (POST, f"/{NAME}\\.git/info/lfs/objects/verify", writing.lfs_verify),
    (READ, f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", reading.resolve),
)
STORAGE_ROUTES: tuple[Route, ...] = (
    (READ, "/objects/(?P<oid>[0-9a-f]{64})", reading.storage_object),
    (PUT, "/upload/(?P<oid>[0-9a-f]{64})", writing.upload),
    (PUT, r"/upload/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", writing.upload_part),
    (POST, "/complete/(?P<oid>[0-9a-f]{64})", writing.complete),
)


class Server(ThreadingHTTPServer):
    """A server whose threads end with the process, and which keeps quiet about clients that go away."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[Exchange]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread, and remember it while it is open."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that ends."""
        self._open.discard(request)
        super().shutdown_request(request)

    def end(self) -> None:
        """Stop serving, and close the connections that clients keep open."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that closes its connection is what some tests are about."""


class Hub:
    """A hub with the repositories that a test adds, while it is entered as a context.

    `tokens` maps each valid token to its user; a user owns the name space of that name. `requests` lists what was answered.
    Files of LFS are served by another origin under signed URLs; `expire()` makes those that were given out invalid. With `xet`,
    the responses have the headers of Xet storage. Uploads of more than `part_bytes` are asked for in parts of that size.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: dict[str, str] = {}
        self._requests: dict[int, Request] = {}
        self._begun = 0
        self.faults = Faults()
        self.routes = {False: HUB_ROUTES, True: STORAGE_ROUTES}
        self.signatures: set[str] = set()
        self.uploaded: dict[str, Blob] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_bytes: int | None = None
        self.page = reading.PAGE
        self.xet = False
        self._idle = threading.Condition()
        self._servers = tuple(
            Server(("127.0.0.1", 0), type("BoundExchange", (Exchange,), {"hub": self, "storage": storage}))
            for storage in (False, True)
        )
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Be unreachable from now on."""
        for server in self._servers:
            server.end()

    def add(
        self,
        name: str,
        content: Path | Mapping[str, bytes | Path],
        *,
        private: bool = False,
        gated: bool = False,
        readers: set[str] | None = None,
    ) -> str:
        """Add a repository with one commit of these files, or a commit to one that exists; the commit's hash is returned."""
        found = self.repositories.setdefault(name, Repository(name, private, gated, readers or set()))
        return found.commit(stored(content))

    def fail(self, fault: Fault) -> None:
        """Let something go wrong."""
        self.faults.add(fault)

    def begin(self) -> int:
        """A request has come, and will be answered; its number."""
        with self._idle:
            self._begun += 1
            return self._begun

    def record(self, number: int, request: Request) -> None:
        """Add an answered request to the list."""
        with self._idle:
            self._requests[number] = request
            self._idle.notify_all()

    @property
    def requests(self) -> list[Request]:
        """What was answered so far, in the order in which the requests came, those included whose answers have just been read."""
        with self._idle:
            self._idle.wait_for(lambda: len(self._requests) == self._begun, PATIENCE)
            return [request for _, request in sorted(self._requests.items(), key=lambda pair: pair[0])]

    def sent(self, path: str = "") -> int:
        """The bytes of bodies that were sent for paths that contain `path`."""
        return sum(request.sent for request in self.requests if path in request.path)

    def blob(self, oid: str) -> Blob | None:
        """The LFS object of a SHA-256, uploaded or in any commit."""
        if oid in self.uploaded:
            return self.uploaded[oid]
        files = (
            file for each in self.repositories.values() for commit in each.commits.values() for file in commit.values()
        )
        return next((file.blob for file in files if file.lfs and file.blob.sha256 == oid), None)

    def signed(self, file: StoredFile) -> str:
        """A new signed URL of an LFS file."""
        return f"{self.storage_url}/objects/{file.blob.sha256}?signature={self.sign()}"

    def sign(self) -> str:
        """A new signature, valid until `expire`."""
        signature = secrets.token_hex(8)
        self.signatures.add(signature)
        return signature

    def expire(self) -> None:
        """Make all signed URLs that were given out invalid."""
        self.signatures.clear()
