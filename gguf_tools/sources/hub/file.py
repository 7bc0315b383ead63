"""A file on the hub that is read in ranges, each repeated from where it broke."""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gguf_tools.errors import InputError
from gguf_tools.sources.hub.addresses import origin
from gguf_tools.sources.hub.client import (
    ATTEMPTS,
    HubError,
    TransientError,
    endpoint,
    explained,
    pause,
    repeated,
    transient,
)
from gguf_tools.sources.hub.names import HubName
from gguf_tools.sources.hub.requests import LEAST, PUBLIC, body, checked, headers, opened, resolved

_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
SKIPPED = 128 << 20
"""Most bytes of a file that is read from its start each time, of a server that does not send parts of files."""
ETAG = re.compile(r"[\w.-]{8,128}", re.ASCII)
"""An ETag, which names a file of the cache."""
EXPIRED = (401, 403)
"""Status codes of the storage for large files when a link to it has expired."""


@dataclass(frozen=True)
class Listed:
    """A file as a repository lists it: its path there, its size in bytes, the SHA-256 of a file in LFS, and its git object id."""

    path: str
    size: int
    sha256: str | None
    oid: str | None = None


@dataclass(frozen=True)
class Link:
    """Where a file's content can be requested, and the headers for it: none of the hub's where another host has it."""

    url: str
    headers: dict[str, str]
    on_hub: bool


class HubFile:
    """A file of a commit, `name.file`, that stands for the path `local`; several threads may read it."""

    def __init__(self, name: HubName, listed: Listed, local: Path) -> None:
        self.name, self.listed, self.local = name, listed, local
        self.size, self.sha256 = listed.size, listed.sha256
        self.etag: str | None = None
        self._link: Link | None = None
        self._lock = threading.Lock()

    def resolve(self) -> None:
        """Ask the hub where the content lies, and for its ETag. Raises HubError."""
        self._resolved()

    def fetch(self, start: int, stop: int) -> bytearray:
        """The bytes from `start` to `stop`, requested from the hub.

        What arrived of a transfer that broke is kept, and the rest requested; `ATTEMPTS` requests in a row that bring nothing
        are an error. Raises HubError, also if the file is no longer what it was.
        """
        data = bytearray()
        failed = 0
        while len(data) < stop - start:
            before = len(data)
            try:
                with self._response(start + before, stop) as (response, skipped):
                    for piece in body(response, skipped + stop - start - before):
                        data += piece[skipped:]
                        skipped = max(skipped - len(piece), 0)
                if len(data) < stop - start:
                    raise TransientError(f"the connection ended at byte {start + len(data)}")
            except InputError:
                raise
            except Exception as error:
                again = transient(error)
                failed = 1 if len(data) - before >= LEAST else failed + 1
                if again is None:
                    raise explained(error, self.name, known=True) from error
                if failed == ATTEMPTS:
                    raise HubError(
                        f"{self.name}: {ATTEMPTS} requests in a row for the bytes from {start + len(data)} on failed "
                        f"({again.what}); check the connection and run the command again"
                    ) from error
                if failed > 1 or (again.wait or 0) > 1:
                    warnings.warn(f"{self.name}: {again.what}; the request is repeated", stacklevel=2)
                pause(failed, again.wait)
        return data

    @contextlib.contextmanager
    def _response(self, start: int, stop: int) -> Iterator[tuple[Any, int]]:
        """The response to a request for a range, checked, and how many of its bytes come before the range.

        Raises TransientError, HubError, or what huggingface_hub raises.
        """
        link = self._resolved()
        with opened("GET", link.url, {**link.headers, "Range": f"bytes={start}-{stop - 1}"}) as response:
            if response.status_code in EXPIRED and not link.on_hub:
                self._forget(link)
                raise TransientError("the link to the file expired", 0.0)
            if response.is_redirect:
                self._forget(link)
                raise TransientError("the file moved", 0.0)
            checked(response)
            yield response, self._before(response, link, start, stop)

    def _before(self, response: Any, link: Link, start: int, stop: int) -> int:
        """How many bytes a response has before byte `start`. Raises HubError unless it has those up to `stop` too."""
        if response.status_code == 200 and (start == 0 or self.size <= SKIPPED):
            length = response.headers.get("Content-Length", str(self.size))
            if length != str(self.size):
                raise self._changed(f"{length[:20]} bytes, expected {self.size}")
            if stop < self.size and self.size > SKIPPED:
                raise self._no_parts(response, link)
            return start
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or not found:
            raise self._no_parts(response, link)
        if int(found[1]) != start or int(found[3]) != self.size:
            raise self._changed(f"bytes {found[1]} of {found[3]}, expected {start} of {self.size}")
        return 0

    def _no_parts(self, response: Any, link: Link) -> HubError:
        return HubError(
            f"{self.name}: {urlsplit(link.url).netloc} does not send parts of files (status {response.status_code}); "
            "download the repository with `hf download` and give the folder"
        )

    def _resolved(self) -> Link:
        """Where the content lies; asked for once, and again when that expires. Raises HubError if it is another content."""
        with self._lock:
            if self._link is None:
                found = repeated(lambda: resolved(self.name), self.name, known=True)
                if found.size not in (None, self.size):
                    raise self._changed(f"{found.size} bytes, expected {self.size}")
                if self.etag not in (None, found.etag) or (self.sha256 and found.etag != self.sha256):
                    raise self._changed(f"the version {str(found.etag)[:80]}, expected {self.etag or self.sha256}")
                if not ETAG.fullmatch(found.etag or ""):
                    raise HubError(
                        f"{self.name}: the hub states the version {str(found.etag)[:80]!r}; expected a hash; check HF_ENDPOINT"
                    )
                self.etag = found.etag
                on_hub = origin(found.url) in (origin(endpoint()), origin(PUBLIC))
                self._link = Link(found.url, headers() if on_hub else {"Accept-Encoding": "identity"}, on_hub)
            return self._link

    def _forget(self, link: Link) -> None:
        """Let the next request ask again where the content lies, if `link` is what is known."""
        with self._lock:
            if self._link is link:
                self._link = None

    def _changed(self, what: str) -> HubError:
        return HubError(f"{self.name}: changed on the hub while it was read ({what}); run the command again")
