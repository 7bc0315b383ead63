"""Links in a checkpoint's folder: into Hugging Face's cache they are followed, out of the folder they are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_tools import convert, operate
from gguf_tools.errors import CheckpointError
from gguf_tools.sources.checkpoint import open_checkpoint

Copy = Callable[[Path], Path]


def cached(folder: Path, hub: Path) -> Path:
    """The checkpoint as huggingface_hub's cache lays it out: a snapshot of links into blobs."""
    snapshot, blobs = hub / "snapshots" / "0123abcd", hub / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for n, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{n:040x}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{n:040x}")
    return snapshot


def test_the_hub_cache_is_read(qwen3_folder: Path, tmp_path: Path) -> None:
    snapshot = cached(qwen3_folder, tmp_path / "models--a--b")
    (tmp_path / "link").symlink_to(snapshot)
    convert(qwen3_folder, tmp_path / "plain.gguf", type="f16")
    for place in (snapshot, tmp_path / "link"):
        convert(place, tmp_path / "cached.gguf", type="f16", force=True)
        sizes = [(tmp_path / name).stat().st_size for name in ("plain.gguf", "cached.gguf")]
        assert abs(sizes[0] - sizes[1]) < 4096
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        operate(place, tmp_path / "out", "swap(0:1)")
        assert not (tmp_path / "out" / "config.json").is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "generation_config.json",
        "README.md",
        "tinyq-recipe.toml",
    ],
)
@pytest.mark.parametrize("where", ["outside", "the blobs of another model"])
def test_a_file_that_leads_out_is_named(
    qwen3_folder: Path, copied: Copy, tmp_path: Path, name: str, where: str
) -> None:
    folder = copied(qwen3_folder)
    path = folder / name
    secret = tmp_path / "models--c--d" / "blobs" / "0" if where != "outside" else tmp_path / "secret.txt"
    secret.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(secret)
    else:
        secret.write_text("hunter2")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret)
    with pytest.raises(CheckpointError, match=f"{path.name}: is a symbolic link to "):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="outside the folder"):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_shard_that_leads_out_is_named(sharded_folder: Path, copied: Copy, tmp_path: Path) -> None:
    folder = copied(sharded_folder)
    shard = next(iter(sorted(folder.glob("model-*.safetensors"))))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{shard.name}: is a symbolic link"):
        open_checkpoint(folder)


def test_links_within_the_folder_are_followed(qwen3_folder: Path, copied: Copy) -> None:
    folder = copied(qwen3_folder)
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    assert open_checkpoint(folder).config == open_checkpoint(qwen3_folder).config


def test_surgery_copies_nothing_from_outside(qwen3_folder: Path, copied: Copy, tmp_path: Path) -> None:
    folder = copied(qwen3_folder)
    (tmp_path / "secret.txt").write_text("hunter2")
    (folder / "notes.txt").symlink_to("../secret.txt")
    convert(folder, tmp_path / "out.gguf")  # which reads no notes
    with pytest.raises(CheckpointError, match=r"notes\.txt: is a symbolic link to"):
        operate(folder, tmp_path / "out", "swap(0:1)")
    assert not (tmp_path / "out").exists()


def test_the_tokenizers_folder_is_held_to_the_same(qwen3_folder: Path, copied: Copy, tmp_path: Path) -> None:
    folder = copied(qwen3_folder)
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is a symbolic link to"):
        convert(qwen3_folder, tmp_path / "out.gguf", tokenizer=folder)


def test_a_tokenizers_folder_that_is_missing_is_said_to_be(qwen3_folder: Path, tmp_path: Path) -> None:
    """And not what lies beside it."""
    (tmp_path / "README.md").write_text("text")
    with pytest.raises(CheckpointError) as raised:
        convert(qwen3_folder, tmp_path / "out.gguf", tokenizer=tmp_path / "gone")
    assert "gone" in str(raised.value)
    assert "link" not in str(raised.value)
