"""The test hub against the real client: what tests of other modules rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session

from tests.hub.faults import Fault
from tests.hub.server import Hub

WEIGHTS = os.urandom(300_000)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "sub/notes.txt": b"notes"}
NAME = "org/model"


@pytest.fixture
def commit(hub: Hub) -> str:
    hub.tokens |= {"hf_org": "org", "hf_other": "other"}
    return hub.add(NAME, FILES)


def test_a_file_in_git_and_one_in_lfs_are_downloaded_into_the_cache(hub: Hub, commit: str) -> None:
    for name, content in FILES.items():
        path = Path(hf_hub_download(NAME, name))
        assert path.read_bytes() == content
        assert commit in path.parts
    assert not [request for request in hub.requests if request.storage and request.token]


def test_the_token_is_not_sent_to_the_storage(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_org")
    assert Path(hf_hub_download(NAME, "model.safetensors")).read_bytes() == WEIGHTS
    assert {request.token for request in hub.requests if not request.storage} == {"hf_org"}
    assert {request.token for request in hub.requests if request.storage} == {None}


def test_ranges_and_their_ends(hub: Hub, commit: str) -> None:
    url = f"{hub.url}/{NAME}/resolve/main/model.safetensors"
    for text, content in {"5-9": WEIGHTS[5:10], "299990-": WEIGHTS[-10:], "-7": WEIGHTS[-7:]}.items():
        headers = {**build_hf_headers(), "Range": f"bytes={text}"}
        response = get_session().get(url, headers=headers, follow_redirects=True)
        assert (response.status_code, response.content) == (206, content)
    beyond = get_session().get(url, headers={"Range": "bytes=300000-"}, follow_redirects=True)
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */300000")


def test_the_description_of_a_repository(hub: Hub, commit: str) -> None:
    api = HfApi()
    described = api.model_info(NAME, files_metadata=True)
    assert described.sha == commit
    assert {each.rfilename: each.size for each in described.siblings or []} == {k: len(v) for k, v in FILES.items()}
    hub.page = 2
    listed = [entry.path for entry in api.list_repo_tree(NAME, recursive=True)]
    assert sorted(listed) == ["config.json", "model.safetensors", "sub", "sub/notes.txt"]
    (weights,) = api.get_paths_info(NAME, ["model.safetensors"])
    assert isinstance(weights, RepoFile)
    assert weights.lfs
    assert weights.lfs.sha256 == hub.repositories[NAME].commits[commit]["model.safetensors"].blob.sha256
    assert [each.target_commit for each in api.list_repo_refs(NAME).branches] == [commit]


def test_what_is_missing_private_or_gated_is_told_apart(hub: Hub, commit: str) -> None:
    hub.add("org/gated", FILES, gated=True, readers={"org"})
    hub.add("org/private", FILES, private=True, readers={"org"})
    for name, token, expected in (
        ("org/none", None, RepositoryNotFoundError),
        ("org/none", "hf_org", RepositoryNotFoundError),
        ("org/private", None, RepositoryNotFoundError),
        ("org/private", "hf_other", RepositoryNotFoundError),
        ("org/gated", None, GatedRepoError),
        ("org/gated", "hf_other", GatedRepoError),
    ):
        with pytest.raises(expected):
            hf_hub_download(name, "config.json", token=token)
    for name in ("org/private", "org/gated"):
        assert Path(hf_hub_download(name, "config.json", token="hf_org")).read_bytes() == FILES["config.json"]
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(NAME, "config.json", revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(NAME, "none.json")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        hf_hub_download(NAME, "config.json", token="hf_wrong")


def test_faults_occur_as_often_as_asked(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what the client keeps of a broken transfer
    hub.fail(Fault(path="/objects/", break_after=100_000))
    hub.fail(Fault(path="/objects/", status=429, headers={"Retry-After": "1"}))
    assert Path(hf_hub_download(NAME, "model.safetensors")).read_bytes() == WEIGHTS
    assert hub.faults.left == 0
    served = [(request.status, request.sent, request.range) for request in hub.requests if request.storage]
    assert served == [(200, 100_000, None), (429, served[1][1], served[1][2]), (206, 200_000, "bytes=100000-")]


def test_links_to_the_storage_expire(hub: Hub, commit: str) -> None:
    link = get_session().get(f"{hub.url}/{NAME}/resolve/main/model.safetensors", follow_redirects=False)
    assert get_session().get(link.headers["Location"]).content == WEIGHTS
    hub.expire()
    assert get_session().get(link.headers["Location"]).status_code == 403


def test_xet_headers_do_not_disturb_a_client_without_xet(hub: Hub, commit: str) -> None:
    hub.xet = True
    assert (Path(snapshot_download(NAME)) / "model.safetensors").read_bytes() == WEIGHTS


def test_an_upload_in_one_piece_and_one_in_parts_become_one_commit(hub: Hub, tmp_path: Path) -> None:
    hub.tokens["hf_org"] = "org"
    hub.part_bytes = 100_000
    api = HfApi(token="hf_org")
    api.create_repo("org/new")
    folder = tmp_path / "folder"
    folder.mkdir()
    small, large = os.urandom(50_000), os.urandom(250_001)
    (folder / "small.gguf").write_bytes(small)
    (folder / "large.gguf").write_bytes(large)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model_relation: quantized\n---\n")
    made = api.upload_folder(repo_id="org/new", folder_path=folder)
    assert hub.repositories["org/new"].refs["main"] == made.oid
    assert Path(hf_hub_download("org/new", "small.gguf")).read_bytes() == small
    assert Path(hf_hub_download("org/new", "large.gguf")).read_bytes() == large
    assert len([request for request in hub.requests if request.method == "PUT"]) == 4
    before = len(hub.requests)
    assert api.upload_folder(repo_id="org/new", folder_path=folder).oid == made.oid
    assert not [request for request in hub.requests[before:] if request.method == "PUT"]


def test_a_broken_upload_leaves_no_commit(hub: Hub, commit: str, tmp_path: Path) -> None:
    hub.fail(Fault(path="/upload/", method="PUT", break_after=1000))
    file = tmp_path / "a.gguf"
    file.write_bytes(WEIGHTS)
    api = HfApi(token="hf_org")
    made = api.upload_file(path_or_fileobj=file, path_in_repo="a.gguf", repo_id=NAME)
    assert hub.faults.left == 0
    assert hub.repositories[NAME].refs["main"] == made.oid != commit


def test_writing_needs_the_owner_and_a_card_that_is_valid(hub: Hub, commit: str) -> None:
    def upload(token: str | None, content: bytes = b"x", path: str = "x.txt") -> None:
        HfApi(token=token).upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=NAME)

    for token in (None, "hf_other", "hf_wrong"):
        with pytest.raises(HfHubHTTPError):
            upload(token)
    with pytest.raises(HfHubHTTPError):
        HfApi(token="hf_other").create_repo("org/other")
    with pytest.raises(ValueError, match="base_model_relation"):
        upload("hf_org", b"---\nbase_model_relation: copied\n---\n", "README.md")
    assert hub.repositories[NAME].refs["main"] == commit
