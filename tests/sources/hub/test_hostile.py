"""Whatever a server answers, reading from it ends in bounded time and memory with a result or with one line."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import WeakFileLock

from gguf_tools.errors import InputError
from gguf_tools.sources.hub import HubError, HubName, Reading, cache, client, local_source, requests
from gguf_tools.sources.hub.cache import cached_commit, snapshot, store
from gguf_tools.sources.hub.file import HubFile, Listed
from gguf_tools.sources.hub.source import is_usable
from tests.hub.faults import Fault, whole
from tests.hub.repositories import Blob
from tests.hub.server import Hub
from tests.sources.hub.test_source import weights

NAME = "org/tiny"
OK = b"HTTP/1.1 200 OK\r\n"
DATA = os.urandom(100_000)
PATH = "model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between requests, few of them, and short limits."""
    monkeypatch.setattr(client, "pause", lambda *_: None)
    monkeypatch.setattr("gguf_tools.sources.hub.file.pause", lambda *_: None)
    monkeypatch.setattr(client, "ATTEMPTS", 2)
    monkeypatch.setattr("gguf_tools.sources.hub.file.ATTEMPTS", 2)
    for limit in ("START_SECONDS", "LISTING_SECONDS", "PATIENCE"):
        monkeypatch.setattr(requests, limit, 0.5)


@pytest.fixture
def commit(hub: Hub, qwen3_folder: Path) -> str:
    return hub.add(NAME, qwen3_folder)


@pytest.fixture
def file(hub: Hub) -> HubFile:
    """A large file of the hub."""
    sha = hub.add("org/model", {PATH: DATA})
    name = HubName("org/model", sha, PATH)
    return HubFile(name, Listed(PATH, len(DATA), Blob(DATA).sha256), snapshot(name, sha) / PATH)


def endless(start: bytes, piece: bytes) -> list[bytes]:
    """More pieces than anybody reads; a client that goes away ends them."""
    return [start, *[piece] * 5000]


def ended(hub: Hub, what: Fault, *, known: bool = True) -> str:
    """The error of reading a repository with a fault."""
    hub.fail(what)
    with pytest.raises(InputError) as caught:
        local_source(NAME, Reading.WHOLE)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert known or "no such file or folder" in message
    return message


ANYWHERE: list[tuple[str, list[bytes]]] = [
    ("closed", [b""]),
    ("garbage", [bytes(range(256))]),
    ("no status", [b"hello\r\n\r\n"]),
    ("switch", [b"HTTP/1.1 101 Switching\r\n\r\n"]),
    ("informational only", endless(b"", b"HTTP/1.1 103 Early\r\n\r\n")),
    ("headers without end", endless(OK, b"X: " + b"y" * 1000 + b"\r\n")),
    ("a long header", [OK + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n"]),
    ("header with NUL", [OK + b"X: \0\r\nContent-Length: 2\r\n\r\n{}"]),
    ("negative length", [OK + b"Content-Length: -1\r\n\r\n{}"]),
    ("length of 5000 digits", [OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}"]),
    ("redirect to a file", [whole(b"", "302 Found", "Location: file:///etc/passwd\r\n")]),
    ("redirect to no port", [whole(b"", "302 Found", "Location: http://127.0.0.1:99999/\r\n")]),
    ("redirect to half an address", [whole(b"", "307 X", "Location: http://[::1\r\n")]),
    ("redirect to control characters", [whole(b"", "302 Found", "Location: http://127.0.0.1/\x01\r\n")]),
    ("redirect to a long address", [whole(b"", "307 X", f"Location: http://127.0.0.1/{'x' * 70_000}\r\n")]),
    ("status 299", [whole(b"<html>", "299 What")]),
    ("status 304", [whole(b"", "304 Not Modified")]),
    ("status 600", [whole(b"", "600 What")]),
    ("wait of other digits", [whole(b"", "429 X", "Retry-After: \xb2\r\n")]),
    ("wait of 5000 digits", [whole(b"", "429 X", f"Retry-After: {'9' * 5000}\r\n")]),
    ("message with escapes", [whole(b"", "400 X", "X-Error-Message: a\x1b[31m\r\n")]),
]


@pytest.mark.parametrize("raw", [raw for _, raw in ANYWHERE], ids=[name for name, _ in ANYWHERE])
def test_answers_that_are_no_hub_s(hub: Hub, commit: str, file: HubFile, raw: list[bytes]) -> None:
    """Of the description of a repository, of where a file is, and of its content."""
    ended(hub, Fault(path="/api/models/", raw=raw, times=9))
    hub.faults = type(hub.faults)()
    ended(hub, Fault(path="/resolve/", method="HEAD", raw=raw, times=99))
    hub.faults = type(hub.faults)()
    hub.fail(Fault(path="/objects/", raw=raw, times=9))
    with pytest.raises(HubError) as caught:
        store(file)
    assert "\n" not in str(caught.value)
    assert not file.local.exists()


JSON = "Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>log in</html>",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"sha": ' + b"9" * 5000 + b"}",
        b'{"sha": "\xff"}',
        b"{" + b"," * 5_000_001 + b"}",
        gzip.compress(b"{}"),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_a_description_that_is_none(hub: Hub, commit: str, body: bytes) -> None:
    message = ended(hub, Fault(path="/api/models/", raw=[whole(body, headers=JSON)]), known=False)
    assert "check HF_ENDPOINT" in message


@pytest.mark.parametrize("sha", [None, 5, [], "../../x", "A" * 40, "a" * 40 + "\n", "\u0663" * 40])
def test_a_commit_that_is_none(hub: Hub, commit: str, sha: Any) -> None:
    body = json.dumps({"sha": sha, "siblings": []}).encode()
    assert "does not name the commit" in ended(hub, Fault(path="/api/models/", raw=[whole(body)]))


@pytest.mark.parametrize(
    "siblings", [None, 5, "abc", {"a": 1}, [None], [5], [{"size": 1}], [{"rfilename": 5, "size": 1}]], ids=repr
)
def test_files_that_are_none(hub: Hub, commit: str, siblings: Any) -> None:
    body = json.dumps({"sha": "a" * 40, "siblings": siblings}).encode()
    assert "has no weights" in ended(hub, Fault(path="/api/models/", raw=[whole(body)]))


def test_a_compressed_description_was_not_asked_for(hub: Hub, commit: str) -> None:
    bomb = gzip.compress(b" " * 1_000_000)
    message = ended(hub, Fault(path="/api/models/", raw=[whole(bomb, headers="Content-Encoding: gzip\r\n")]))
    assert "compressed by 'gzip', which was not asked for" in message


def test_a_description_without_end(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_LISTING", 100_000)
    message = ended(hub, Fault(path="/api/models/", raw=endless(OK + b"\r\n", b" " * 10_000)))
    assert "sent more than the 100,000 bytes" in message


@pytest.mark.parametrize("path", ["/api/models/", "/resolve/", "/resolve-cache/"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(hub: Hub, commit: str, path: str) -> None:
    start = OK if path == "/resolve/" else OK + b"Content-Length: 100000\r\n\r\n"
    piece = b"X: y\r\n" if path == "/resolve/" else b" "
    method = "HEAD" if path == "/resolve/" else "GET"
    ended(hub, Fault(path=path, method=method, raw=[start, *[piece] * 90], delay=0.1, times=99))


def test_a_transfer_of_some_bytes_at_a_time_does_not_go_on_for_ever(file: HubFile, hub: Hub) -> None:
    """Each request brings a little, and breaks."""
    hub.fail(Fault(path="/objects/", break_after=1, times=999))
    with pytest.raises(HubError, match="2 requests in a row"):
        store(file)
    assert len([one for one in hub.requests if one.storage]) == 2


RANGES = [
    ("", "changed|parts"),
    ("Content-Range: bytes 1-99999/100000\r\n", "changed on the hub"),
    ("Content-Range: bytes 0-99999/100001\r\n", "changed on the hub"),
    ("Content-Range: bytes 0-99999/*\r\n", "does not send parts"),
    ("Content-Range: bytes 0-99999/\xb2\r\n", "does not send parts"),
    (f"Content-Range: bytes 0-99999/{'9' * 5000}\r\n", "does not send parts"),
    ("Content-Type: multipart/byteranges; boundary=X\r\n", "does not send parts"),
    ("Content-Range: bytes 0-99999/100000\r\nContent-Encoding: gzip\r\n", "compressed by 'gzip'"),
]


@pytest.mark.parametrize(("headers", "message"), RANGES, ids=[headers[:50] for headers, _ in RANGES])
def test_another_range_than_was_asked_for(file: HubFile, hub: Hub, headers: str, message: str) -> None:
    hub.fail(Fault(path="/objects/", raw=[whole(DATA, "206 Partial Content", headers)]))
    with pytest.raises(HubError, match=message):
        file.fetch(0, len(DATA))


def test_more_bytes_than_were_asked_for(file: HubFile, hub: Hub) -> None:
    headers = "Content-Range: bytes 0-9/100000\r\n"
    hub.fail(Fault(path="/objects/", raw=[whole(DATA, "206 Partial Content", headers)]))
    with pytest.raises(HubError, match="sent more than the 10 bytes that were asked for"):
        file.fetch(0, 10)


def test_a_server_that_knows_no_ranges_is_read_from_the_start(
    file: HubFile, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail(Fault(path="/objects/", raw=[whole(DATA)], times=99))
    assert file.fetch(99_000, len(DATA)) == DATA[99_000:]
    store(file)
    assert file.local.read_bytes() == DATA
    monkeypatch.setattr("gguf_tools.sources.hub.file.SKIPPED", 99_999)
    with pytest.raises(HubError, match="does not send parts of files"):
        file.fetch(10, 20)
    hub.faults = type(hub.faults)()
    hub.fail(Fault(path="/objects/", raw=[whole(DATA[1:])]))
    with pytest.raises(HubError, match="changed on the hub"):
        file.fetch(0, len(DATA))


@pytest.mark.parametrize("etag", ["../../../evil", "/tmp/evil", "a/b", "", "..", "e" * 300, "a\tb", "\xe9" * 40])
def test_an_etag_that_is_no_name(hub: Hub, commit: str, tmp_path: Path, etag: str) -> None:
    answer = whole(b"", headers=f'ETag: "{etag}"\r\nX-Linked-Size: 1\r\n')
    ended(hub, Fault(path="/resolve/", method="HEAD", raw=[answer], times=99))
    found = {path.name for path in tmp_path.rglob("*") if "models--" not in str(path)}
    assert found <= {"home", "hub", ".locks"}


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:{port}/x", "//127.0.0.1:{port}/x", "http://u:p@127.0.0.1:{port}/x"]
)
def test_the_token_stays_on_the_hub_wherever_it_redirects(
    hub: Hub, commit: str, file: HubFile, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_org")
    hub.tokens["hf_org"] = "org"
    place = place.format(port=hub.storage_url.rpartition(":")[2])
    sent = whole(b"", "302 Found", f"Location: {place}\r\nETag: {'e' * 40}\r\n")
    ended(hub, Fault(path="/api/models/", raw=[sent], times=9))
    ended(hub, Fault(path="/resolve/", method="HEAD", raw=[sent], times=99))
    assert {one.token for one in hub.requests if one.storage} == {None}


def test_a_token_that_is_none_is_not_shown(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("hf_s3cret\x01", "hf_s3cret\xe9"):
        monkeypatch.setenv("HF_TOKEN", token)
        message = ended(hub, Fault(path="/never/"))
        assert "the token for the hub has characters that no token has" in message
        assert "s3cret" not in message


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1",
        "ftp://x",
        "http://",
        "http://a b",
        "http://x:0",
        "http://x:abc",
        "http://[::1",
        "http://x/?a",
        "http://\xe9",
    ],
)
def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(InputError, match=r"HF_ENDPOINT is .* which is no address"):
        local_source(NAME)


@pytest.mark.parametrize("place", ["@127.0.0.1", "@127.0.0.1:99999", "@[::1", "/@127.0.0.1", "@127.0.0.1/?x"])
def test_the_password_of_an_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:s3cret{place}")
    with pytest.raises(InputError, match="user name") as caught:
        local_source(NAME)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["nonsense", "ftp://x", "http://u:s3cret@x:99999"])
def test_a_proxy_that_is_none(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    close_session()
    try:
        message = ended(hub, Fault(path="/never/"))
    finally:
        close_session()
    assert re.search("HTTPS_PROXY|cannot be reached", message)
    assert "s3cret" not in message


def test_files_that_cannot_lie_in_a_folder_are_left_on_the_hub() -> None:
    for path in ("x" * 256 + ".json", "\xe9" * 130 + ".json", "a\ud800.json", "a\u202eb.json", "", 5, None):
        assert not is_usable(Listed(path, 1, None))  # type: ignore[arg-type]
    for size in (-1, 1.5, "5", True, None, 1 << 60):
        assert not is_usable(Listed("a.json", size, None))  # type: ignore[arg-type]
    assert not is_usable(Listed("a.json", 1, "../x"))
    assert is_usable(Listed("x" * 250 + ".json", 1, None))


def test_more_small_files_than_a_model_has(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_tools.sources.hub.source.MOST_SMALL", 2)
    assert "files of" in ended(hub, Fault(path="/never/"))
    assert hub.sent("/resolve-cache/") == 0


def test_a_small_file_that_is_not_what_the_hub_says(hub: Hub, commit: str) -> None:
    """Its git object id is stated in the list of files and as its ETag."""
    size = hub.repositories[NAME].commits[commit]["config.json"].blob.size
    hub.fail(Fault(path="/config.json", raw=[whole(b"{" + b" " * (size - 2) + b"}")]))
    with pytest.raises(HubError, match="what was downloaded has git object id"):
        local_source(NAME)
    assert weights(local_source(NAME))


def test_what_lies_in_the_cache_in_place_of_a_file_is_not_followed(file: HubFile, tmp_path: Path) -> None:
    file.resolve()
    blobs = file.local.parents[2] / "blobs"
    blobs.mkdir(parents=True)
    part, mine = blobs / f"{file.etag}{cache.PART}", tmp_path / "mine.txt"
    mine.write_text("mine")
    part.symlink_to(mine)
    with pytest.raises(HubError, match="remove what is in the way"):
        store(file)
    assert mine.read_text() == "mine"
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(HubError, match="is no regular file"):
        store(file)
    part.unlink()
    lock = cache.cache_folder() / ".locks" / "models--org--model" / f"{file.etag}.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(mine)
    with pytest.raises(HubError, match="is no regular file"):
        store(file)
    lock.unlink()
    assert mine.read_text() == "mine"
    store(file)
    assert file.local.read_bytes() == DATA


@pytest.mark.parametrize("text", ["../../../..", "a" * 39, "\xff" * 40, "a" * 1000])
def test_what_the_cache_says_of_a_branch_is_a_commit(hub: Hub, text: str) -> None:
    refs = Path(constants.HF_HUB_CACHE) / "models--org--tiny" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(text, "latin-1")
    assert cached_commit(HubName(NAME)) is None
    (refs / "main").unlink()
    os.mkfifo(refs / "main")
    assert cached_commit(HubName(NAME)) is None


def test_a_lock_that_another_process_holds_is_named(file: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "TOLD", 0.1)
    file.resolve()
    lock = cache.cache_folder() / ".locks" / "models--org--model" / f"{file.etag}.lock"
    lock.parent.mkdir(parents=True)
    held = ExitStack()
    held.enter_context(WeakFileLock(lock))
    threading.Timer(0.5, held.close).start()
    with pytest.warns(UserWarning, match=rf"another process holds {re.escape(str(lock))}; waiting"):
        store(file)
    assert file.local.read_bytes() == DATA


def test_errors_of_the_disk_say_what_to_do(file: HubFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")

    monkeypatch.setattr(cache, "_complete", full)
    with pytest.raises(HubError, match=r"there: could not be written .*; free some space"):
        store(file)
