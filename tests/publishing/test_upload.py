"""Uploading a published folder by the real client to a hub on loopback: one commit, what stays, what goes on, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gguf_tools import publish
from gguf_tools.errors import InputError, OutputError
from gguf_tools.sources.hub import client
from tests import tiny_models
from tests.conftest import Ran
from tests.hub.client import use
from tests.hub.faults import Fault
from tests.hub.server import Hub
from tests.tiny_models import checkpoint

Tinyq = Callable[..., Ran]
NAME = "me/tiny-GGUF"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as made:
        use(made, monkeypatch, tmp_path / "home")
        made.tokens |= {"hf_me": "me", "hf_other": "other"}
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        yield made


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("source") / "tiny", tiny_models.dense(), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def ready(source: Path) -> Path:
    """A folder with two types, which tests must not change."""
    publish(source, source.parent / "ready", types="f32,q8_0", suite="none", name="tiny")
    return source.parent / "ready"


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ready, tmp_path / "ready"))


def there(hub: Hub) -> dict[str, bytes]:
    """The files of the repository's newest commit."""
    found = hub.repositories[NAME]
    return {name: each.blob.read(0, each.blob.size) for name, each in found.commits[found.refs["main"]].items()}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sent(hub: Hub) -> list[str]:
    """The paths of large files that were sent."""
    return [request.path for request in hub.requests if request.method == "PUT"]


def test_all_is_uploaded_in_one_commit_with_commands_for_the_hub(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tinyq: Tinyq
) -> None:
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "r.json"
    ran = tinyq("publish", source, "--types", "q8_0,q4_k_m", "--suite", "none", "--to", NAME, "--json", report)
    assert ran.code == 0, ran.err
    made = tmp_path / "tiny-GGUF"  # the repository's name
    assert there(hub) == {**on_disk(made), ".gitattributes": there(hub)[".gitattributes"]}
    found = hub.repositories[NAME]
    assert len(found.commits) == 2  # that of the creation, and ours
    told = json.loads(report.read_text("utf-8"))["upload"]
    assert told["url"] == f"{hub.url}/{NAME}/commit/{found.refs['main']}"
    assert told["url"] in ran.out
    assert sorted(told["names"]) == sorted(on_disk(made))
    card = (made / "README.md").read_text("utf-8")
    assert f"-hf {NAME}:Q4_K_M" in card
    assert f"ollama run hf.co/{NAME}:Q4_K_M" in card
    assert f'Llama.from_pretrained("{NAME}", filename="tiny-Q4_K_M.gguf"' in card
    assert f"lms get https://huggingface.co/{NAME}" in card
    assert not found.private


def test_from_the_hub_to_the_hub(hub: Hub, source: Path, tmp_path: Path) -> None:
    commit = hub.add("org/tiny", source)
    publish("org/tiny", tmp_path / "out", types="q8_0", suite="none", to=NAME)
    card = there(hub)["README.md"].decode()
    assert "base_model: org/tiny\nbase_model_relation: quantized\n" in card
    assert f"--source org/tiny@{commit}" in card
    assert set(there(hub)) == {*on_disk(tmp_path / "out"), ".gitattributes"}


def test_a_private_repository(hub: Hub, folder: Path) -> None:
    publish(folder, to=NAME, private=True)
    assert hub.repositories[NAME].private


def test_nothing_is_uploaded_twice(hub: Hub, folder: Path) -> None:
    first = publish(folder, to=NAME)
    puts = len(sent(hub))
    again = publish(folder, to=NAME)
    assert again.uploaded
    assert again.uploaded.names == ()
    assert again.url == first.url
    assert len(sent(hub)) == puts
    assert len(hub.repositories[NAME].commits) == 2


def test_an_upload_that_broke_goes_on_with_the_file_that_was_not_complete(hub: Hub, folder: Path) -> None:
    hub.fail(Fault(path="/upload/", method="PUT", skip=1, times=99, status=403))
    with pytest.raises(OutputError) as error:
        publish(folder, to=NAME)
    said = str(error.value)
    assert f"{NAME}: the token may not write there" in said
    assert f"go on with tinyq publish {folder} --to {NAME}" in said
    assert list(there(hub)) == [".gitattributes"]  # nothing is visible
    hub.faults._waiting.clear()
    before = sent(hub)
    publish(folder, to=NAME)
    after = sent(hub)[len(before) :]
    assert len(after) == 1
    assert after[0] != before[0]
    assert {**on_disk(folder), ".gitattributes": there(hub)[".gitattributes"]} == there(hub)


KILLED = """
import sys
from gguf_tools.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_an_upload_that_was_killed_goes_on(hub: Hub, folder: Path) -> None:
    """SIGKILL while the second file is sent: the first is not sent again, and the repository has all or nothing."""
    hub.fail(Fault(path="/upload/", method="PUT", skip=1, times=1, delay=3.0))
    command = [sys.executable, "-c", KILLED, "publish", str(folder), "--to", NAME, "-q"]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    deadline = time.monotonic() + 120
    while hub.faults.left and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(there(hub)) == [".gitattributes"]
    first = set(hub.uploaded)
    assert len(first) == 1
    hub.faults._waiting.clear()
    before = len(sent(hub))
    publish(folder, to=NAME)
    assert not any(next(iter(first)) in path for path in sent(hub)[before:])
    assert set(there(hub)) == {*on_disk(folder), ".gitattributes"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="/upload/", method="PUT", times=2, status=503),
        Fault(path="/upload/", method="PUT", times=2, break_after=1000),
        Fault(path="/preupload/", method="POST", times=2, status=429, headers={"Retry-After": "0"}),
        Fault(path="/commit/", method="POST", times=1, status=500),
        Fault(path="/batch", method="POST", times=2, status=429),
        Fault(path="/api/models/", method="GET", times=2, status=504),
    ],
    ids=lambda fault: f"{fault.path} {fault.status or 'breaks'}",
)
def test_what_passes_is_tried_again(hub: Hub, folder: Path, fault: Fault) -> None:
    hub.fail(Fault(**vars(fault)))
    publish(folder, to=NAME)
    assert set(there(hub)) == {*on_disk(folder), ".gitattributes"}
    assert hub.faults.left == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(path="/repos/create", method="POST", times=9, status=429),
            r"limits the number of requests \(429\); wait",
        ),
        (Fault(path="/repos/create", method="POST", times=9, status=403), r"the token may not write there"),
        (Fault(path="/commit/", method="POST", times=9, status=412), r"was changed by someone else meanwhile"),
        (Fault(path="/commit/", method="POST", times=9, status=400), r"the hub answered with status 400"),
        (Fault(path="/preupload/", method="POST", times=9, status=404), r"no such repository that the token may write"),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_refusals_are_one_line_that_says_how_to_go_on(
    hub: Hub, folder: Path, tinyq: Tinyq, fault: Fault, said: str
) -> None:
    hub.fail(Fault(**vars(fault)))
    ran = tinyq("publish", folder, "--to", NAME, "-q")
    assert ran.code == 2
    assert len(ran.err.strip().splitlines()) == 1
    assert re.search(said, ran.err), ran.err
    assert f"go on with tinyq publish {folder} --to {NAME}" in ran.err
    assert set(there(hub)) <= {".gitattributes"} if NAME in hub.repositories else True


@pytest.mark.parametrize(
    ("token", "to", "said"),
    [
        (None, NAME, "uploading needs a token"),
        ("hf_wrong", NAME, "the hub does not accept the token"),
        ("hf_other", NAME, "the token is that of other, who is neither me nor a member of it"),
        ("hf_me", "tiny", "--to is 'tiny'; expected OWNER/NAME"),
        ("hf_me", "me/a b", "--to is 'me/a b'; expected OWNER/NAME"),
    ],
)
def test_who_may_not_write_is_told_before_any_work(
    hub: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, to: str, said: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises((OutputError, InputError)) as error:
        publish(source, tmp_path / "out", types="q8_0", to=to)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not hub.repositories


def test_a_hub_that_cannot_be_reached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as gone:
        use(gone, monkeypatch, tmp_path / "home")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    with pytest.raises(OutputError, match=rf"{NAME}: the hub {gone.url} cannot be reached .*check the connection"):
        publish(folder, to=NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="while HF_HUB_OFFLINE is set; unset it"):
        publish(folder, to=NAME)


def test_files_that_are_there_are_replaced_only_by_force(hub: Hub, folder: Path, source: Path, tmp_path: Path) -> None:
    hub.add(NAME, {"README.md": b"mine", "LICENSE": b"a license"})
    listed = r"has README.md already, which would be replaced; add --force"
    with pytest.raises(OutputError, match=listed):
        publish(folder, to=NAME)
    with pytest.raises(OutputError, match=listed):  # before any work
        publish(source, tmp_path / "out", types="q8_0", suite="none", to=NAME)
    assert not (tmp_path / "out").exists()
    assert publish(folder, to=NAME, dry_run=True).replaced == ("README.md",)
    assert there(hub) == {"README.md": b"mine", "LICENSE": b"a license"}
    publish(folder, to=NAME, force=True)
    assert there(hub) == {**on_disk(folder), "LICENSE": b"a license"}


def test_a_folder_that_was_changed_is_not_uploaded(hub: Hub, folder: Path, tinyq: Tinyq) -> None:
    (folder / "README.md").write_text("changed")
    ran = tinyq("publish", folder, "--to", NAME)
    assert ran.code == 2
    assert f"{folder / 'README.md'}: is not what SHA256SUMS lists" in ran.err
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/etc/hostname")
    assert "is listed in SHA256SUMS but is not a file there" in tinyq("publish", folder, "--to", NAME).err
    assert not hub.repositories


@pytest.mark.parametrize("options", [("--types", "q8_0"), ("--swap", "0:1"), ("--suite", "none"), ("--imatrix", "x")])
def test_options_of_a_conversion_do_not_suit_an_upload(folder: Path, tinyq: Tinyq, options: tuple[str, str]) -> None:
    ran = tinyq("publish", folder, "--to", NAME, *options)
    assert ran.code == 2
    assert f"has nothing to do with {options[0]}" in ran.err


def test_what_there_is_to_say_without_a_place(source: Path, folder: Path, tinyq: Tinyq) -> None:
    assert "a folder to write (--out DIR), a repository to upload to" in tinyq("publish", source).err
    assert "give --to OWNER/NAME" in tinyq("publish", folder).err


def test_without_the_library(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tinyq: Tinyq) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    ran = tinyq("publish", source, "-o", tmp_path / "out", "--types", "q8_0", "--to", NAME)
    assert ran.code == 2
    assert "pip install 'tinyq-gguf[hub]'" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_too_old(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.__version__", "0.36.0")
    with pytest.raises(
        InputError, match=rf"^{NAME}: uploading needs huggingface_hub 1\.0 or later; 0\.36\.0 is installed"
    ):
        publish(folder, to=NAME)


def test_the_card_passes_the_hub_s_own_check(hub: Hub, folder: Path) -> None:
    import huggingface_hub

    card: Any = huggingface_hub.ModelCard((folder / "README.md").read_text("utf-8"))
    card.validate()
