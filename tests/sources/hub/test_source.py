"""Names on the hub as sources: what lies in the cache afterwards, what is read in ranges, and what the errors say."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download

from gguf_tools.errors import InputError
from gguf_tools.formats.remote import bring, present, remote_at
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.hub import HubError, Reading, kept_source, local_source, parse_name, window
from tests.hub.faults import Fault
from tests.hub.server import Hub

NAME = "org/tiny"


@pytest.fixture
def commit(hub: Hub, qwen3_folder: Path) -> str:
    hub.tokens |= {"hf_org": "org", "hf_other": "other"}
    return hub.add(NAME, qwen3_folder)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


def refused(name: str, reading: Reading = Reading.STREAMED) -> str:
    with pytest.raises(HubError) as caught:
        local_source(name, reading)
    message = str(caught.value)
    assert "\n" not in message
    return message


def weights(path: Path) -> dict[str, bytes]:
    opened = open_checkpoint(path)
    return {name: tensor.array().tobytes() for name, tensor in opened.tensors.items()}


def test_small_files_are_downloaded_and_weights_read_in_ranges(hub: Hub, commit: str, qwen3_folder: Path) -> None:
    path = local_source(NAME)
    assert path == Path(constants.HF_HUB_CACHE) / "models--org--tiny" / "snapshots" / commit
    names = {file.name for file in qwen3_folder.iterdir()}
    assert {file.name for file in path.iterdir()} == names - {"model.safetensors"}
    assert present(path / "model.safetensors")
    assert weights(path) == weights(qwen3_folder)
    assert not (path / "model.safetensors").exists()
    size = (qwen3_folder / "model.safetensors").stat().st_size
    assert size <= hub.sent("/objects/") <= size + window.HEADER_BLOCK
    assert open_checkpoint(path).digest() == open_checkpoint(qwen3_folder).digest()
    assert open_checkpoint(path).has_digest(open_checkpoint(qwen3_folder).digest())


def test_shards_are_read_in_ranges(hub: Hub, sharded_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "HEADER_BLOCK", 1000)
    hub.add("org/shards", sharded_folder)
    path = local_source("org/shards")
    assert weights(path) == weights(sharded_folder)
    assert open_checkpoint(path).digest() == open_checkpoint(sharded_folder).digest()
    sizes = [file.stat().st_size for file in sharded_folder.glob("*.safetensors")]
    assert sum(sizes) <= hub.sent("/objects/") <= sum(sizes) + 1000 * len(sizes)


def test_what_the_cache_has_is_not_asked_for(hub: Hub, commit: str, qwen3_folder: Path) -> None:
    folder = Path(snapshot_download(NAME))
    before = len(hub.requests)
    path = local_source(NAME)
    assert path == folder
    assert weights(path) == weights(qwen3_folder)
    (asked,) = hub.requests[before:]
    assert asked.path == f"/api/models/{NAME}/revision/main"


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, commit: str, qwen3_folder: Path) -> None:
    files = {path.name: path for path in qwen3_folder.iterdir()}
    changed = hub.add(NAME, {**files, "README.md": b"# changed"})
    hub.repositories[NAME].refs["v1"] = commit
    hub.repositories[NAME].refs["refs/pr/1"] = commit
    for name, expected in (
        (NAME, changed),
        (f"{NAME}@v1", commit),
        (f"{NAME}@refs/pr/1", commit),
        (f"{NAME}@{commit}", commit),
    ):
        assert local_source(name).name == expected


def test_a_folder_of_that_name_is_the_folder(
    hub: Hub, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_source(NAME) == Path(NAME)
    assert hub.requests == []


def test_whole_sources_are_downloaded_and_then_need_no_hub(
    hub: Hub, commit: str, qwen3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = local_source(NAME, Reading.WHOLE)
    assert (path / "model.safetensors").read_bytes() == (qwen3_folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert local_source(NAME) == local_source(f"{NAME}@{commit}") == path
    assert weights(path) == weights(qwen3_folder)
    named = parse_name(NAME)
    assert named
    assert kept_source(named) == path
    assert len(hub.requests) == before


def test_a_source_that_is_attached_can_be_downloaded_afterwards(hub: Hub, commit: str, qwen3_folder: Path) -> None:
    path = local_source(NAME)
    assert remote_at(path / "model.safetensors")
    bring([path / "model.safetensors", path / "config.json"])
    assert remote_at(path / "model.safetensors") is None
    assert weights(path) == weights(qwen3_folder)
    again = local_source(path, Reading.WHOLE)
    assert again == path


def test_without_a_connection_the_cache_is_read_with_a_warning(hub: Hub, commit: str, qwen3_folder: Path) -> None:
    path = local_source(NAME, Reading.WHOLE)
    hub.stop()
    with pytest.warns(UserWarning, match=r"cannot be asked about org/tiny; commit \w+ in its cache is read"):
        assert local_source(NAME) == path


def test_offline_needs_the_weights_in_the_cache(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local_source(NAME)  # streamed: the cache has the small files
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "without its weights" in refused(NAME)
    assert refused("org/other") == (
        "org/other: no such file or folder, and what is needed of it is not in the hub's cache, and HF_HUB_OFFLINE forbids to "
        "download it; check the name or unset HF_HUB_OFFLINE"
    )
    assert local_source(NAME, Reading.BESIDE).name == commit


@pytest.mark.parametrize("offline", [True, False])
def test_a_name_that_no_hub_knows_makes_no_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    refused("org/nothing")
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_only_what_describes_the_weights_is_downloaded_beside_them(hub: Hub, qwen3_folder: Path) -> None:
    files: dict[str, bytes | Path] = {path.name: path for path in qwen3_folder.iterdir()}
    files |= {"modeling.py": b"raise SystemExit", "onnx/config.json": b"{}", "a.gguf": b"GGUF", "img.png": b"PNG"}
    files |= {"additional_chat_templates/tools.jinja": b"{{ 1 }}", "vocab.txt": b"a"}
    hub.add("org/more", files)
    path = local_source("org/more")
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    expected = {*(name for name in files if "/" not in name), "additional_chat_templates/tools.jinja"}
    assert found == expected - {"modeling.py", "a.gguf", "img.png", "model.safetensors"}
    for name in ("modeling.py", "img.png", "a.gguf", "onnx/config.json"):
        assert hub.sent(f"/{name}") == 0


def test_a_torch_state_dict_is_downloaded(hub: Hub, qwen3_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    files: dict[str, bytes | Path] = {
        path.name: path for path in qwen3_folder.iterdir() if path.suffix != ".safetensors"
    }
    torch.save(load_file(qwen3_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    hub.add("org/torch", {**files, "pytorch_model.bin": tmp_path / "pytorch_model.bin", "training_args.bin": b"x"})
    path = local_source("org/torch", Reading.HEADERS)
    assert (path / "pytorch_model.bin").exists()
    assert not (path / "training_args.bin").exists()
    assert weights(path) == weights(qwen3_folder)


def test_errors_say_what_is_missing(hub: Hub, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", {"config.json": b"{}", "model.safetensors": b"x" * 100}, gated=True, readers={"org"})
    hub.add("org/private", {"config.json": b"{}"}, private=True, readers={"org"})
    hub.add("org/empty", {"README.md": b"nothing"})
    hub.add("org/ggufs", {"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    nothing = (
        "org/{0}: no such file or folder, and the hub has no repository org/{0} that is public; check the name or, if it is "
        f"private, {log_in}"
    )
    assert refused("org/none") == nothing.format("none")
    assert refused("org/private") == nothing.format("private")
    assert refused("org/gated") == f"org/gated: is gated; accept its licence at {hub.url}/org/gated, then {log_in}"
    assert (
        refused(f"{NAME}@none")
        == f"{NAME}@none: the repository has no revision none; see {hub.url}/{NAME}/commits/main"
    )
    assert refused(f"{NAME}/none.gguf").startswith(f"{NAME}/none.gguf: the repository has no such file; give one of")
    assert refused("org/ggufs") == (
        "org/ggufs: the repository has no weights in its main folder; give one of its files: org/ggufs/a.gguf, org/ggufs/b.gguf"
    )
    assert refused("org/empty") == "org/empty: the repository has no weights in its main folder; it has README.md"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert refused("org/private") == (
        "org/private: no such file or folder, and the hub has no repository org/private that your token may read; check the "
        "name and the token"
    )
    assert refused("org/gated") == (
        "org/gated: is gated, and the account of your token has no access to it; accept its licence at "
        f"{hub.url}/org/gated with that account"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert refused(NAME) == f"{NAME}: the hub does not accept the token of HF_TOKEN; make a new one, then {log_in}"
    monkeypatch.setenv("HF_TOKEN", "hf_org")
    assert present(local_source("org/gated") / "model.safetensors")


def test_errors_of_the_hub_itself(hub: Hub, commit: str) -> None:
    hub.fail(Fault(path="/api/models/", status=429, times=99))
    assert "limits the number of requests (429)" in refused(NAME)
    hub.faults = type(hub.faults)()
    hub.fail(Fault(path="/api/models/", status=502, times=99))
    assert "answered with status 502" in refused(NAME)
    hub.faults = type(hub.faults)()
    hub.fail(Fault(path="/api/models/", status=503, times=3))
    assert local_source(NAME).name == commit
    hub.stop()
    assert re.search(
        r"org/x: no such file or folder, and the hub http://\S+ cannot be reached \(.+\); check", refused("org/x")
    )


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", missing)
    expected = r"org/x: no such file or folder; .*needed \(not installed\): pip install 'tinyq-gguf\[hub\]'"
    with pytest.raises(InputError, match=expected):
        local_source("org/x")


def test_a_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.__version__", "0.36.0")
    with pytest.raises(InputError, match=r"needs huggingface_hub 1\.0 or later; 0\.36\.0 is installed"):
        local_source("org/x")


def test_a_repository_cannot_name_files_out_of_its_folder(hub: Hub, qwen3_folder: Path) -> None:
    files: dict[str, bytes | Path] = {path.name: path for path in qwen3_folder.iterdir()}
    evil = (
        "../../evil.json",
        "..\\evil.safetensors",
        "/tmp/evil.json",
        "evil\0.json",
        "evil\n.safetensors",
        "./evil.json",
    )
    hub.add("org/hostile", {**files, **dict.fromkeys(evil, b"{}")})
    path = local_source("org/hostile")
    assert weights(path) == weights(qwen3_folder)
    assert not list(path.parents[2].rglob("*evil*"))


def test_a_server_that_is_no_hub_is_told(hub: Hub, commit: str) -> None:
    found = hub.repositories[NAME]
    found.commits["../../x"] = found.commits[commit]
    found.refs["main"] = "../../x"
    assert "does not name the commit; expected a hub of Hugging Face's kind; check HF_ENDPOINT" in refused(NAME)


@pytest.mark.parametrize("token", [None, "hf_org"])
def test_files_in_xet_storage_are_read_in_ranges_without_the_token(
    hub: Hub, commit: str, qwen3_folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.xet = True
    if token:
        hub.repositories[NAME].private = True
        hub.repositories[NAME].readers = {"org"}
        monkeypatch.setenv("HF_TOKEN", token)
    assert weights(local_source(NAME)) == weights(qwen3_folder)
    assert {request.token for request in hub.requests if request.storage} == {None}


def test_the_values_are_those_of_the_folder(hub: Hub, commit: str, qwen3_folder: Path) -> None:
    ours, theirs = open_checkpoint(local_source(NAME)), open_checkpoint(qwen3_folder)
    for name, tensor in theirs.tensors.items():
        found = ours.tensors[name]
        assert np.array_equal(found.flat(1, tensor.size), tensor.flat(1, tensor.size))
        assert np.array_equal(found.raw(0, 1), tensor.raw(0, 1))


def test_a_cache_that_cannot_be_written_is_read(
    hub: Hub, commit: str, qwen3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shared one may be: what it has is used, though it does not know the branch yet."""
    path = local_source(f"{NAME}@{commit}", Reading.WHOLE)
    assert not (path.parents[1] / "refs").exists()

    def read_only(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", read_only)
    assert local_source(NAME) == path
    assert weights(path) == weights(qwen3_folder)
