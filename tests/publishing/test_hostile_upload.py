"""Whatever a hub answers to an upload, the command ends with one line, and the folder is there to go on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_tools.errors import OutputError, TinyqError
from gguf_tools.publishing import upload as module
from gguf_tools.publishing.upload import look, upload
from gguf_tools.sources.hub import client, requests
from tests.hub.client import use
from tests.hub.faults import Fault, whole
from tests.hub.server import Hub

NAME = "me/tiny-GGUF"
FILES = {"README.md": b"card", "tiny.gguf": b"GGUF" * 50_000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ready").mkdir()
    for name, data in FILES.items():
        (tmp_path / "ready" / name).write_bytes(data)
    return tmp_path / "ready"


@pytest.fixture
def here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub on which `me` may write; requests are repeated once, at once."""
    hub.tokens["hf_me"] = "me"
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(requests, "START_SECONDS", 0.5)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)
    return hub


JSON = "Content-Type: application/json\r\n"
ANSWERS = {
    "garbage": bytes(range(256)),
    "html": whole(b"<html>log in</html>", headers="Content-Type: text/html\r\n"),
    "null": whole(b"null", headers=JSON),
    "numbers for all": whole(
        json.dumps(
            dict.fromkeys(("name", "orgs", "auth", "sha", "siblings", "url", "objects", "files", "commitUrl"), 5)
        ).encode(),
        headers=JSON,
    ),
    "lists of numbers": whole(
        json.dumps({"orgs": [5], "siblings": [5], "objects": [5], "files": [5]}).encode(), headers=JSON
    ),
    "half an address": whole(b"", "307 X", "Location: http://[::1\r\n"),
    "a wait of other digits": whole(b"", "429 X", "Retry-After: \xb2\r\n"),
}
ROUTES = {
    "whoami": ("GET", "/api/whoami"),
    "the repository": ("GET", f"/api/models/{NAME}"),
    "create": ("POST", "/repos/create"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "the file": ("PUT", "/upload/"),
    "commit": ("POST", "/commit/"),
}


@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_answers_that_are_none(here: Hub, folder: Path, route: tuple[str, str], raw: bytes) -> None:
    method, path = route
    here.fail(Fault(path=path, method=method, raw=[raw], times=99))
    try:
        look(NAME)
        upload(folder, list(FILES), NAME)
    except TinyqError as error:
        message = str(error)
        assert message.startswith(NAME)
        assert "\n" not in message
        assert len(message) < 900
        assert "hf_me" not in message
    else:  # an answer that nobody reads, or that there is no repository yet
        assert route in (ROUTES["the file"], ROUTES["create"], ROUTES["the repository"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("route", ["whoami", "create", "commit"])
def test_a_silent_hub_is_not_waited_for(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    hub.tokens["hf_me"] = "me"
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(module, "SLOWEST", 10**9)
    method, path = ROUTES[route]
    hub.fail(Fault(path=path, method=method, raw=[b"HTTP/1.1 200 OK\r\n"] + [b"X: y\r\n"] * 50, delay=0.1, times=99))
    with pytest.raises(OutputError, match="no answer within 0 s"):
        _ = look(NAME) and upload(folder, list(FILES), NAME)


def test_a_token_that_is_none_is_not_shown(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret\x01")
    with pytest.raises(TinyqError, match="characters that no token has") as caught:
        look(NAME)
    assert "s3cret" not in str(caught.value)


def test_another_account_named_oddly(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(hub, monkeypatch, tmp_path / "home")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    body = json.dumps({"name": ["me"], "orgs": {"a": 1}, "auth": {"accessToken": [1]}}).encode()
    hub.fail(Fault(path="/api/whoami", raw=[whole(body, headers=JSON)]))
    with pytest.raises(OutputError, match="who is neither me nor a member of it"):
        look(NAME)
