"""Requests to the hub, with bounds in time and size whatever it answers.

They use huggingface_hub's session (the proxies and certificates of the environment), its headers and its errors, but none of its
functions that read an answer to its end. Every function raises what `client.explained` explains, TransientError or HubError.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from gguf_tools.formats.text_file import load_json
from gguf_tools.sources.hub.addresses import is_url, origin
from gguf_tools.sources.hub.client import HubError, TransientError, endpoint
from gguf_tools.sources.hub.names import HubName
from gguf_tools.sources.hub.threads import within
from gguf_tools.text import one_line, shortened

START_SECONDS = 60.0
"""Most seconds until an answer's headers have come."""
LISTING_SECONDS = 120.0
"""Most seconds until the description of a repository has come."""
MOST_LISTING = 32 << 20
"""Most bytes of it, which is room for about 100,000 files."""
MOST_REDIRECTS = 20
LEAST = 16 << 10
"""Fewer bytes than these count as nothing: in `PATIENCE` seconds of a transfer, and of a request that broke."""
PATIENCE = 60.0
PUBLIC = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What the hub says of a file: the URL of its content, its ETag, and its size; both None if it does not say them."""

    url: str
    etag: str | None
    size: int | None


def session() -> Any:
    """huggingface_hub's session. Raises HubError if the environment's proxies or certificates do not allow one."""
    from huggingface_hub import get_session

    try:
        return get_session()
    except Exception as error:  # of any class, by the proxy's scheme, port or package, and by the certificates
        said = shortened(one_line(str(error)), 200)
        shown = f" ({said})" if said and "@" not in said else ""  # a proxy's address may have a password
        raise HubError(
            f"the connection to the hub cannot be set up{shown}; check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY and "
            "SSL_CERT_FILE"
        ) from error


def headers() -> dict[str, str]:
    """The headers of a request to the hub, with the token if there is one. Raises HubError for one that is none."""
    from huggingface_hub.utils import build_hf_headers

    found: dict[str, str] = build_hf_headers()
    if not all(value.isascii() and value.isprintable() for value in found.values()):
        raise HubError(
            "the token for the hub has characters that no token has; set HF_TOKEN, or log in with `hf auth login`, again"
        )
    return {**found, "Accept-Encoding": "identity"}


def described(name: HubName) -> dict[str, Any]:
    """The hub's description of a repository at a revision: its commit (`sha`), and its files with their sizes (`siblings`)."""
    path = f"/api/models/{name.repository}/revision/{quote(name.revision, safe='')}?blobs=true"
    return json_at(path, f"{one_line(str(name))}: no such file or folder, and ")


def json_at(path: str, asked: str = "") -> dict[str, Any]:
    """The JSON object that the hub answers at a path. Raises HubError, which begins with what was `asked`, if it is none."""

    def read() -> tuple[Any, bytes]:
        with opened("GET", endpoint() + path, headers(), follow=True, patience=START_SECONDS) as response:
            checked(response)
            return response, b"".join(body(response, MOST_LISTING))

    try:
        response, data = within(LISTING_SECONDS, read)
    except TimeoutError as error:
        raise TransientError(f"no complete answer within {LISTING_SECONDS:g} s") from error
    with contextlib.suppress(ValueError, RecursionError):
        found = load_json(data) if response.status_code == 200 else None
        if isinstance(found, dict):
            return found
    kind = shortened(one_line(response.headers.get("Content-Type") or "no type"), 60)
    raise HubError(
        f"{asked}{endpoint()} does not answer as a hub of Hugging Face's kind (status {response.status_code}, {kind}); check "
        "HF_ENDPOINT, and whether a proxy or a log-in page answers"
    )


def files_of(description: Mapping[str, Any]) -> list[tuple[Any, Any, Any, Any]]:
    """The path, the size, the SHA-256 and the git object id of each file that a description lists, of whatever type they are.

    The SHA-256 is None of a file that is not in LFS, and "" of one whose SHA-256 is not stated.
    """
    listed = description.get("siblings")
    found = []
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, dict):
            lfs = each.get("lfs")
            sha256 = lfs.get("sha256", "") if isinstance(lfs, dict) else None
            found.append((each.get("rfilename", ""), each.get("size", -1), sha256, each.get("blobId")))
    return found


def resolved(name: HubName) -> Resolved:
    """Where the content of a file is, what it is and how long. The token is sent to the hub only, wherever that redirects."""
    url = f"{endpoint()}/{name.repository}/resolve/{quote(name.revision, safe='')}/{quote(str(name.file))}"
    homes = {origin(url), origin(PUBLIC)}
    for _ in range(MOST_REDIRECTS):
        with opened("HEAD", url, headers()) as response:
            checked(response)
            found, place = response.headers, response.headers.get("Location")
            if not response.is_redirect or place is None:
                if not response.is_success:
                    raise HubError(
                        f"{name}: the hub answered with status {response.status_code}, which says nothing of the file; "
                        "check HF_ENDPOINT"
                    )
                return Resolved(url=url, etag=_etag(found), size=_number(found, "X-Linked-Size", "Content-Length"))
        url = _target(name, url, place)
        if origin(url) not in homes:
            return Resolved(url=url, etag=_etag(found), size=_number(found, "X-Linked-Size"))
    raise HubError(f"{name}: the hub redirects more than {MOST_REDIRECTS} times; check HF_ENDPOINT")


@contextlib.contextmanager
def opened(
    method: str, url: str, sent: dict[str, str], *, follow: bool = False, patience: float = 0.0
) -> Iterator[Any]:
    """The response to a request when its headers are there; its body is read within the block.

    A connection that is silent for HF_HUB_DOWNLOAD_TIMEOUT seconds, or for `patience` if that is longer, has failed.
    """
    from huggingface_hub import constants

    found = session()
    request = found.build_request(method, url, headers=sent, timeout=max(constants.HF_HUB_DOWNLOAD_TIMEOUT, patience))
    try:
        response = within(START_SECONDS, lambda: found.send(request, stream=True, follow_redirects=follow))
    except TimeoutError as error:
        raise TransientError(f"no answer within {START_SECONDS:g} s") from error
    try:
        yield response
    finally:
        response.close()


def checked(response: Any) -> None:
    """Raise what huggingface_hub raises for an answer of another status than success, and HubError for a compressed one."""
    from huggingface_hub.utils import hf_raise_for_status

    hf_raise_for_status(response)
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise HubError(
            f"{urlsplit(str(response.request.url)).netloc} sent an answer compressed by {shortened(one_line(coding), 40)!r}, "
            "which was not asked for; check HF_ENDPOINT and the proxy"
        )


def body(response: Any, most: int, now: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    """The bytes of an answer as they come. Raises HubError if there are more than `most`, TransientError if they come too slowly.

    Too slowly means fewer than `LEAST` bytes in `PATIENCE` seconds, although the connection is alive.
    """
    begun, came, total = now(), 0, 0
    for piece in response.iter_raw():
        total += len(piece)
        came += len(piece)
        if total > most:
            raise HubError(
                f"{urlsplit(str(response.request.url)).netloc} sent more than the {most:,} bytes that were asked for; run the "
                "command again, and check HF_ENDPOINT"
            )
        yield piece
        if now() - begun > PATIENCE:
            if came < LEAST:
                raise TransientError(f"only {came:,} bytes came in {PATIENCE:g} s")
            begun, came = now(), 0


def _target(name: HubName, url: str, place: str) -> str:
    """The URL that a redirect leads to. Raises HubError if no request can be sent there."""
    try:
        found = urljoin(url, place)
    except ValueError:
        found = ""
    if not is_url(found):
        shown = shortened(one_line(place), 80)
        raise HubError(f"{name}: the hub redirects to {shown!r}, which is no address; check HF_ENDPOINT")
    return found


def _etag(found: Any) -> str | None:
    """The ETag that names a file: that of the linked file, else that of the answer."""
    text = found.get("X-Linked-Etag") or found.get("ETag")
    return None if text is None else str(text).removeprefix("W/").strip('"')


def _number(found: Any, *names: str) -> int | None:
    """The first of these headers that is a number of bytes."""
    for name in names:
        text = found.get(name, "").strip()
        if text.isascii() and text.isdigit() and len(text) <= 18:
            return int(text)
    return None
