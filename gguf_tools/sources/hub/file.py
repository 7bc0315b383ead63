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

from gguf_tools.sources.hub.client import (
    ATTEMPTS,
    HubError,
    TransientError,
    explained,
    pause,
    repeated,
    transient,
)
from gguf_tools.sources.hub.names import HubName

PIECE = 1 << 16
"""Bytes that are taken from a response at a time."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
ETAG = re.compile(r"[\w.-]{8,128}", re.ASCII)
"""An ETag, which names a file of the cache."""
EXPIRED = (401, 403)
"""Status codes of the storage for large files when a link to it has expired."""


@dataclass(frozen=True)
class Listed:
    """A file as a repository lists it: its path there, its size in bytes, and the SHA-256 of a file in LFS."""

    path: str
    size: int
    sha256: str | None


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
                with self._response(start + before, stop) as response:
                    for piece in response.iter_raw(PIECE):
                        data += piece
                if len(data) < stop - start:
                    raise TransientError(f"the connection ended at byte {start + len(data)}")
            except Exception as error:
                again = error if isinstance(error, TransientError) else transient(error)
                failed = 1 if len(data) > before else failed + 1
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
        if len(data) > stop - start:
            raise HubError(f"{self.name}: the hub sent more bytes than were asked for; run the command again")
        return data

    @contextlib.contextmanager
    def _response(self, start: int, stop: int) -> Iterator[Any]:
        """The response to a request for a range, checked. Raises TransientError, HubError, or what huggingface_hub raises."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import hf_raise_for_status

        link = self._resolved()
        headers = {**link.headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        session, timeout = get_session(), constants.HF_HUB_DOWNLOAD_TIMEOUT
        with session.stream("GET", link.url, headers=headers, timeout=timeout, follow_redirects=False) as response:
            if response.status_code in EXPIRED and not link.on_hub:
                self._forget(link)
                raise TransientError("the link to the file expired", 0.0)
            if response.is_redirect:
                self._forget(link)
                raise TransientError("the file moved", 0.0)
            hf_raise_for_status(response)
            found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or not found:
                raise HubError(
                    f"{self.name}: {urlsplit(link.url).netloc} does not send parts of files (status {response.status_code}); "
                    "download the repository with `hf download` and give the folder"
                )
            if int(found[1]) != start or int(found[3]) != self.size:
                raise self._changed(f"bytes {found[1]} of {found[3]}, expected {start} of {self.size}")
            yield response

    def _resolved(self) -> Link:
        """Where the content lies; asked for once, and again when that expires. Raises HubError if it is another content."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        with self._lock:
            if self._link is None:
                url = hf_hub_url(self.name.repository, str(self.name.file), revision=self.name.revision)
                found = repeated(lambda: get_hf_file_metadata(url, token=None), self.name, known=True)
                if found.size not in (None, self.size):
                    raise self._changed(f"{found.size} bytes, expected {self.size}")
                if self.etag not in (None, found.etag) or (self.sha256 and found.etag != self.sha256):
                    raise self._changed(f"the version {found.etag}, expected {self.etag or self.sha256}")
                if not ETAG.fullmatch(found.etag or ""):
                    raise HubError(f"{self.name}: the hub states the version {str(found.etag)[:80]!r}; expected a hash")
                self.etag = found.etag
                on_hub = urlsplit(found.location)[:2] == urlsplit(url)[:2]
                self._link = Link(found.location, build_hf_headers() if on_hub else {}, on_hub)
            return self._link

    def _forget(self, link: Link) -> None:
        """Let the next request ask again where the content lies, if `link` is what is known."""
        with self._lock:
            if self._link is link:
                self._link = None

    def _changed(self, what: str) -> HubError:
        return HubError(f"{self.name}: changed on the hub while it was read ({what}); run the command again")
