"""Opening a checkpoint folder: what has to lie in it, and how each thing that can be wrong is named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_tools.errors import CheckpointError
from gguf_tools.sources.checkpoint import CONFIG, INDEX, SINGLE, open_checkpoint, read_json

Copy = Callable[[Path], Path]


def refused(folder: Path) -> str:
    """The line that opening the folder ends with."""
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(folder)
    return str(raised.value)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """Alters the weight_map of a sharded checkpoint."""
    index = json.loads((folder / INDEX).read_text("utf-8"))
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index), "utf-8")
    return folder


def test_one_file_and_shards_hold_the_same(sharded_folder: Path, copied: Copy) -> None:
    from tests.tiny_models import checkpoint, moe

    whole = open_checkpoint(checkpoint(copied(sharded_folder).parent / "whole", moe()))
    shards = open_checkpoint(sharded_folder)
    assert [path.name for path in whole.weight_files] == [SINGLE]
    assert len(shards.weight_files) > 3
    assert set(whole.tensors) == set(shards.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(tensor.array(), shards.tensors[name].array())


def test_a_single_file_may_have_any_name(qwen3_folder: Path, copied: Copy) -> None:
    folder = copied(qwen3_folder)
    (folder / SINGLE).rename(folder / "weights.safetensors")
    assert open_checkpoint(folder).weight_files == (folder / "weights.safetensors",)


def test_nothing_there(tmp_path: Path) -> None:
    assert "nowhere: no such file or folder" in refused(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(qwen3_folder: Path) -> None:
    assert "config.json: is neither" in refused(qwen3_folder / CONFIG)


def test_no_config(qwen3_folder: Path, copied: Copy) -> None:
    folder = copied(qwen3_folder)
    (folder / CONFIG).unlink()
    assert f"{folder / CONFIG}: cannot be read (No such file or directory)" in refused(folder)


def test_no_weights(qwen3_folder: Path, copied: Copy) -> None:
    folder = copied(qwen3_folder)
    (folder / SINGLE).unlink()
    assert "holds no safetensors weights; expected model.safetensors" in refused(folder)


def test_several_files_without_an_index(sharded_folder: Path, copied: Copy) -> None:
    folder = copied(sharded_folder)
    (folder / INDEX).unlink()
    assert "safetensors files without model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1]", "holds a JSON list; expected an object"),
        ("null", "holds a JSON NoneType"),
        ('{"a": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": "\udcff"}', "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("name", [CONFIG, INDEX])
def test_broken_json(sharded_folder: Path, copied: Copy, name: str, text: str, expected: str) -> None:
    folder = copied(sharded_folder)
    (folder / name).write_text(text, "utf-8", errors="surrogateescape")
    message = refused(folder)
    assert f"{folder / name}: " in message
    assert expected in message


def test_a_folder_in_place_of_a_file(qwen3_folder: Path, copied: Copy) -> None:
    folder = copied(qwen3_folder)
    for name in (SINGLE, CONFIG):
        (folder / name).unlink()
        (folder / name).mkdir()
        assert name in refused(folder)


def test_a_missing_shard(sharded_folder: Path, copied: Copy) -> None:
    folder = copied(sharded_folder)
    gone = sorted(folder.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert f"{gone}: missing, though {INDEX} lists it as a shard" in refused(folder)


@pytest.mark.parametrize("name", ["../tiny-moe/model-x.safetensors", "/etc/passwd", "..", ".", "", "sub/a.safetensors"])
def test_a_path_out_of_the_folder_is_not_followed(sharded_folder: Path, copied: Copy, name: str) -> None:
    def point_there(weight_map: dict[str, str]) -> None:
        weight_map["model.norm.weight"] = name

    folder = change_index(copied(sharded_folder), point_there)
    message = refused(folder)
    assert INDEX in message
    assert f"{name!r}; expected a plain file name" in message


@pytest.mark.parametrize("name", ["x" * 300, "a\0b.safetensors", "\ud800.safetensors", "gone"])
def test_a_name_that_no_file_has(sharded_folder: Path, copied: Copy, name: str) -> None:
    def point_there(weight_map: dict[str, str]) -> None:
        weight_map["model.norm.weight"] = name

    message = refused(change_index(copied(sharded_folder), point_there))
    assert name[:100] in message


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 3])
def test_an_index_without_a_map(sharded_folder: Path, copied: Copy, weight_map: object) -> None:
    folder = copied(sharded_folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    assert f"{INDEX}: has no weight_map" in refused(folder)


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_an_index_with_values_of_other_kinds(sharded_folder: Path, copied: Copy, value: object) -> None:
    def change(weight_map: dict[str, object]) -> None:
        weight_map["model.norm.weight"] = value

    message = refused(change_index(copied(sharded_folder), change))  # type: ignore[arg-type]
    assert f"{INDEX}: names the shard" in message
    assert "expected a plain file name" in message


def test_an_index_that_names_a_tensor_which_no_shard_has(sharded_folder: Path, copied: Copy) -> None:
    def change(weight_map: dict[str, str]) -> None:
        weight_map["model.extra.weight"] = weight_map["model.norm.weight"]

    message = refused(change_index(copied(sharded_folder), change))
    assert "tensor model.extra.weight is missing, though" in message


def test_an_index_that_leaves_a_tensor_out(sharded_folder: Path, copied: Copy) -> None:
    folder = change_index(copied(sharded_folder), lambda weight_map: weight_map.pop("model.norm.weight"))
    assert "does not list tensor model.norm.weight, which a shard holds" in refused(folder)


@pytest.mark.parametrize(
    ("change", "equal"), [(lambda t: t, True), (lambda t: t + 1, False), (lambda t: t[:-1], False)]
)
def test_a_tensor_that_two_shards_hold(
    sharded_folder: Path, copied: Copy, change: Callable[[torch.Tensor], torch.Tensor], equal: bool
) -> None:
    """transformers takes the last shard's, whatever the index lists."""
    folder = copied(sharded_folder)
    name = "model.norm.weight"
    listed = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"][name]
    other = next(path for path in sorted(folder.glob("model-*.safetensors")) if path.name != listed)
    extra = change(load_file(folder / listed)[name]).clone()
    save_file({**load_file(other), name: extra}, other, {"format": "pt"})
    if equal:
        assert open_checkpoint(folder).tensors[name].shape == extra.shape
    else:
        assert f"{other}: tensor {name} has other values than in {listed}, where the index lists it" in refused(folder)


def test_a_truncated_shard_is_named(sharded_folder: Path, copied: Copy) -> None:
    folder = copied(sharded_folder)
    shard = sorted(folder.glob("model-*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard}: tensor" in refused(folder)


def test_the_digest_is_of_names_and_contents(sharded_folder: Path, copied: Copy) -> None:
    folder = copied(sharded_folder)
    opened = open_checkpoint(folder)
    expected = hashlib.sha256()
    older = hashlib.sha256()
    for path in (folder / CONFIG, *opened.weight_files):
        expected.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        older.update(path.name.encode() + b"\0" + path.read_bytes())
    assert opened.digest() == "files:" + expected.hexdigest()
    assert opened.has_digest(opened.digest())
    assert opened.has_digest(older.hexdigest())
    assert not opened.has_digest("0" * 64)
    assert open_checkpoint(sharded_folder).digest() == opened.digest()
    before = opened.digest()
    (folder / CONFIG).write_text((folder / CONFIG).read_text("utf-8") + " ", "utf-8")
    assert open_checkpoint(folder).digest() != before


def test_the_digest_of_a_file_whose_name_is_not_utf_8(qwen3_folder: Path, copied: Copy) -> None:
    folder = copied(qwen3_folder)
    (weights,) = open_checkpoint(folder).weight_files
    named = weights.rename(folder / os.fsdecode(b"\xff.safetensors"))
    found = b"".join(
        b"%s\0%s\n" % (os.fsencode(path.name), hashlib.sha256(path.read_bytes()).hexdigest().encode())
        for path in (folder / CONFIG, named)
    )
    assert open_checkpoint(named).digest() == "files:" + hashlib.sha256(found).hexdigest()


def test_a_cancelled_digest_ends_early(qwen3_folder: Path) -> None:
    opened = open_checkpoint(qwen3_folder)
    assert opened.digest(lambda: True) != opened.digest()


def test_read_json_reads_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"näme": "日本"}'.encode())
    assert read_json(path) == {"näme": "日本"}
