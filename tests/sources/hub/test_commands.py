"""Commands on sources of the hub: the same results as from a folder, what is downloaded for them, and what is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from gguf_tools.bundled import bundled_model
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.sources.hub import window
from tests.conftest import Ran
from tests.hub.server import Hub
from tests.sources.restore.unpack import packers

NAME = "org/tiny"
Tinyq = Callable[..., Ran]


@pytest.fixture
def commit(hub: Hub, qwen3_folder: Path) -> str:
    hub.tokens["hf_org"] = "org"
    return hub.add(NAME, qwen3_folder)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


def good(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def data(path: Path) -> bytes:
    return path.read_bytes()[read_header(path).data_offset :]


def test_a_conversion_downloads_each_byte_once_and_records_the_commit(
    hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq
) -> None:
    shown = good(tinyq("convert", NAME, tmp_path / "a.gguf")).out
    assert f"{NAME}@{commit[:12]} (qwen3" in shown
    # Type auto reads the weights before they are written; they are in the window then.
    size = (qwen3_folder / "model.safetensors").stat().st_size
    assert size <= hub.sent("/objects/") <= size + window.HEADER_BLOCK
    good(tinyq("convert", qwen3_folder, tmp_path / "b.gguf"))
    assert data(tmp_path / "a.gguf") == data(tmp_path / "b.gguf")
    ours, theirs = read_header(tmp_path / "a.gguf"), read_header(tmp_path / "b.gguf")
    changed = {key: ours.get(key) for key in {*ours.metadata, *theirs.metadata} if ours.get(key) != theirs.get(key)}
    assert changed.pop("general.name", "tiny") == "tiny"
    assert changed == {
        "tinyq.source.repository": NAME,
        "tinyq.source.commit": commit,
        "tinyq.source.path": None,
        "general.source.repo_url": f"https://huggingface.co/{NAME}",
    }
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors")) == []


def test_shards_are_read_once_with_a_window_that_is_smaller_than_the_model(
    hub: Hub, sharded_folder: Path, tmp_path: Path, tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/shards", sharded_folder)
    total = sum(path.stat().st_size for path in sharded_folder.glob("*.safetensors"))
    monkeypatch.setattr(window, "SMALL", 1)
    monkeypatch.setattr(window, "HEADER_BLOCK", 1000)
    tiny = {"block": 2_000, "ahead": 4_000, "most": 60_000, "unit": 500}
    monkeypatch.setattr(window.Window.__init__, "__kwdefaults__", tiny)
    good(tinyq("convert", "org/shards", tmp_path / "a.gguf", "--type", "bf16", "--threads", 1))
    good(tinyq("convert", sharded_folder, tmp_path / "b.gguf", "--type", "bf16"))
    assert data(tmp_path / "a.gguf") == data(tmp_path / "b.gguf")
    assert total <= hub.sent("/objects/") < 1.1 * total


def test_a_file_from_the_hub_and_one_from_a_folder_verify_against_both(
    hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq
) -> None:
    good(tinyq("convert", NAME, tmp_path / "a.gguf", "--type", "q8_0"))
    good(tinyq("convert", qwen3_folder, tmp_path / "b.gguf", "--type", "q8_0"))
    digests = {read_header(tmp_path / name).get("tinyq.source.digest") for name in ("a.gguf", "b.gguf")}
    assert len(digests) == 1
    for name in ("a.gguf", "b.gguf"):
        for source in (f"{NAME}@{commit}", qwen3_folder):
            assert "byte for byte" in good(tinyq("verify", tmp_path / name, "--source", source)).out
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors")) == []


def test_download_keeps_the_weights(hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    good(tinyq("convert", NAME, tmp_path / "a.gguf", "--download"))
    (kept,) = Path(constants.HF_HUB_CACHE).rglob("*.safetensors")
    assert kept.read_bytes() == (qwen3_folder / "model.safetensors").read_bytes()
    hub.stop()
    with pytest.warns(UserWarning, match="cannot be asked"):
        good(tinyq("convert", f"{NAME}@{commit}", tmp_path / "b.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_inspect_reads_headers_only(hub: Hub, tinyq: Tinyq) -> None:
    large = 40 << 20
    header = json.dumps({"big.weight": {"dtype": "F32", "shape": [large // 4], "data_offsets": [0, large]}}).encode()
    blob = len(header).to_bytes(8, "little") + header + bytes(large)
    config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    hub.add("org/large", {"config.json": config, "model.safetensors": blob})
    shown = good(tinyq("inspect", "org/large")).out
    assert "org/large@" in shown
    assert hub.sent() < 100_000


def test_inspect_of_a_gguf_reads_its_header_only(hub: Hub, tmp_path: Path, tinyq: Tinyq) -> None:
    path = tmp_path / "dense.gguf"
    good(tinyq("convert", bundled_model("dense"), path, "--type", "f32"))
    hub.add("org/ggufs", {"sub/dense.gguf": path})
    ours = json.loads(good(tinyq("inspect", "org/ggufs/sub/dense.gguf", "--json", "-")).out)
    assert hub.sent() < 600_000 < path.stat().st_size / 20
    theirs = json.loads(good(tinyq("inspect", path, "--json", "-")).out)
    assert {**ours, "path": None} == {**theirs, "path": None}


def test_inspect_of_a_checkpoint_says_the_same_as_of_its_folder(
    hub: Hub, commit: str, qwen3_folder: Path, tinyq: Tinyq
) -> None:
    ours = json.loads(good(tinyq("inspect", NAME, "--json", "-")).out)
    theirs = json.loads(good(tinyq("inspect", qwen3_folder, "--json", "-")).out)
    assert {**ours, "path": None} == {**theirs, "path": None}


def test_a_repository_is_the_reference(hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    good(tinyq("convert", NAME, tmp_path / "a.gguf", "--type", "f32"))
    alone = good(tinyq("eval", tmp_path / "a.gguf", "--suite", "fidelity", "--oracle", "none")).out
    assert f"its source is {NAME}@{commit[:12]} on the hub; give --reference" in alone
    command = ("eval", tmp_path / "a.gguf", "--suite", "fidelity", "--oracle", "none", "--json", "-")
    found = json.loads(good(tinyq(*command, "--reference", f"{NAME}@{commit}")).out)
    assert found["fidelity"]["nmse"] < 1e-9
    # It is in the cache now, where it is found as what is recorded in the file.
    again = json.loads(good(tinyq(*command)).out)
    assert again["fidelity"]["nmse"] == found["fidelity"]["nmse"]


def test_files_of_the_cache_are_not_changed_in_place(
    hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq
) -> None:
    good(tinyq("convert", qwen3_folder, tmp_path / "tiny.gguf", "--type", "f32"))
    hub.add("org/ggufs", {"tiny.gguf": tmp_path / "tiny.gguf"})
    ran = tinyq("surgery", "org/ggufs/tiny.gguf", "--in-place", "--swap", "0:1")
    assert ran.code == 2
    assert "lies in the hub's cache, whose files other programs read too; give OUT" in ran.err
    good(tinyq("surgery", "org/ggufs/tiny.gguf", tmp_path / "swapped.gguf", "--swap", "0:1"))
    good(tinyq("surgery", tmp_path / "tiny.gguf", tmp_path / "other.gguf", "--swap", "0:1"))
    assert data(tmp_path / "swapped.gguf") == data(tmp_path / "other.gguf")


def test_surgery_streams_a_checkpoint(hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    good(tinyq("surgery", NAME, tmp_path / "ours", "--swap", "0:1"))
    good(tinyq("surgery", qwen3_folder, tmp_path / "theirs", "--swap", "0:1"))
    for path in (tmp_path / "theirs").iterdir():
        if path.suffix in (".safetensors", ".json") and path.name != "model_card.json":
            assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes(), path.name
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors")) == []


def test_a_tokenizer_of_the_hub(hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((qwen3_folder / name).read_bytes())
    good(tinyq("convert", bare, tmp_path / "a.gguf", "--tokenizer", NAME))
    assert hub.sent("/objects/") == 0
    tokens = [read_header(tmp_path / "a.gguf").get("tokenizer.ggml.tokens")]
    good(tinyq("convert", qwen3_folder, tmp_path / "b.gguf"))
    assert tokens == [read_header(tmp_path / "b.gguf").get("tokenizer.ggml.tokens")]


def test_a_missing_folder_is_one_line(hub: Hub, tmp_path: Path, tinyq: Tinyq) -> None:
    ran = tinyq("convert", "runs/latest", tmp_path / "a.gguf")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("tinyq: runs/latest: no such file or folder, and the hub has no repository runs/latest")
    assert list(tmp_path.glob("*.gguf")) == []


def test_the_command_reads_the_environment(hub: Hub, commit: str, tmp_path: Path) -> None:
    """A process of its own, whose library takes HF_ENDPOINT, HF_TOKEN and HF_HOME from the environment."""
    hub.repositories[NAME].private = True
    hub.repositories[NAME].readers = {"org"}
    line = [sys.executable, "-m", "gguf_tools", "inspect", NAME, "--json", "-"]
    ran = subprocess.run(line, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "has no repository org/tiny that is public" in ran.stderr
    environment = {**os.environ, "HF_TOKEN": "hf_org"}
    ran = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert str(tmp_path / "home") in json.loads(ran.stdout)["path"]


def test_type_auto_says_when_it_downloads_twice(
    hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"block": 5_000, "ahead": 10_000, "most": 1, "unit": 1_000}
    monkeypatch.setattr(window.Window.__init__, "__kwdefaults__", tiny)
    note = "type auto reads the weights before they are written: 163.5 kB are downloaded twice"
    assert note in " ".join(good(tinyq("convert", NAME, tmp_path / "a.gguf")).out.split())
    assert "twice" not in good(tinyq("convert", NAME, tmp_path / "b.gguf", "--type", "f16")).out


def test_an_adapter_of_the_hub(hub: Hub, commit: str, qwen3_folder: Path, tmp_path: Path, tinyq: Tinyq) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(qwen3_folder),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(str(tmp_path / "adapter"))
    hub.add("org/adapter", tmp_path / "adapter")
    good(tinyq("convert", NAME, tmp_path / "a.gguf", "--type", "f32", "--lora", "org/adapter@0.5"))
    good(tinyq("convert", qwen3_folder, tmp_path / "b.gguf", "--type", "f32", "--lora", f"{tmp_path / 'adapter'}@0.5"))
    assert data(tmp_path / "a.gguf") == data(tmp_path / "b.gguf")
    good(tinyq("convert", "org/adapter", tmp_path / "c.gguf", "--base", NAME))
    good(tinyq("convert", tmp_path / "adapter", tmp_path / "d.gguf", "--base", qwen3_folder))
    assert data(tmp_path / "c.gguf") == data(tmp_path / "d.gguf")


def test_packed_weights_of_the_hub_are_unpacked_as_those_of_a_folder(hub: Hub, tmp_path: Path, tinyq: Tinyq) -> None:
    def pack(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[packers.Arrays, packers.Array]:
        layer = packers.layer(rng, outputs, inputs)
        return packers.gptq(layer), layer.expected

    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    made = packers.checkpoint(tmp_path / "packed", pack, {"quantization_config": quantization})
    hub.add("org/packed", made.folder)
    for chosen in ("f32", "auto"):
        good(tinyq("convert", made.folder, tmp_path / "folder.gguf", "--type", chosen, "--force"))
        good(tinyq("convert", "org/packed", tmp_path / "hub.gguf", "--type", chosen, "--force"))
        assert data(tmp_path / "hub.gguf") == data(tmp_path / "folder.gguf")
    assert "gptq" in good(tinyq("inspect", "org/packed")).out.lower()
