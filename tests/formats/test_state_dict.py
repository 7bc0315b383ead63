"""Torch state dicts as sources: what opens, what is refused, and that nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.state_dict import read_state_dict
from gguf_tools.sources.checkpoint import open_checkpoint

WEIGHTS = {"a.weight": torch.arange(12.0).view(3, 4) / 7, "b.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def saved(path: Path, value: object, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def refused(path: Path) -> str:
    """The one line with which opening fails."""
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, "cfg": {"top_k": 2}, "step": 3},
        lambda weights: {"_orig_mod." + name: tensor for name, tensor in weights.items()},
        lambda weights: {"state_dict": {"module._orig_mod." + name: tensor for name, tensor in weights.items()}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_opens(tmp_path: Path, wrap: Callable[[object], object], zipped: bool) -> None:
    path = saved(tmp_path / "w.pt", wrap(WEIGHTS), _use_new_zipfile_serialization=zipped)
    found = read_state_dict(path)
    assert list(found.tensors) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert np.array_equal(found.tensors[name].array(), tensor.float().numpy())
    assert [tensor.dtype for tensor in found.tensors.values()] == ["F32", "BF16"]


def test_a_training_checkpoint_says_what_is_left_out(tmp_path: Path) -> None:
    saved(tmp_path / "w.pt", {"model": WEIGHTS, "cfg": {"top_k": 2}, "step": 3, "optimizer": {"state": {}}})
    (tmp_path / "config.json").write_text(json.dumps({"top_k": 1, "d_ff": 8}), "utf-8")
    found = open_checkpoint(tmp_path)
    assert found.config == {"top_k": 2, "d_ff": 8}
    assert found.notes == ("w.pt also holds step, optimizer: left out",)
    assert found.folder == tmp_path


@pytest.mark.parametrize("piece", [1, 3, 5, 100])
def test_reads_any_piece_of_any_layout(tmp_path: Path, piece: int) -> None:
    base = torch.randn(6, 5, 4)
    made = {"plain": base, "turned": base.transpose(0, 2), "cut": base[1:4, ::2], "one": torch.tensor(2.5)}
    found = read_state_dict(saved(tmp_path / "w.pth", made)).tensors
    for name, tensor in made.items():
        flat = [found[name].flat(n, min(n + piece, tensor.numel())) for n in range(0, tensor.numel(), piece)]
        assert np.array_equal(np.concatenate(flat), tensor.reshape(-1).numpy()), name


def test_pages_of_the_file_are_given_back(tmp_path: Path) -> None:
    size = 8 << 20
    path = saved(tmp_path / "w.pt", {"w": torch.ones(size // 4, 4)})
    tensor = read_state_dict(path).tensors["w"]
    for start in range(0, size, 1 << 18):
        assert tensor.flat(start, start + (1 << 18)).all()
    smaps = Path("/proc/self/smaps").read_text().split(str(path))[1]
    resident = next(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Rss:"))
    assert resident < 2048


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["config", "weight", "whole"])
def test_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool, place: str) -> None:
    hostile, mark = Hostile(tmp_path / "ran"), tmp_path / "ran"
    value = {
        "config": {"model": WEIGHTS, "cfg": hostile},
        "weight": {**WEIGHTS, "c.weight": hostile},
        "whole": hostile,
    }[place]
    message = refused(saved(tmp_path / "w.pt", value, _use_new_zipfile_serialization=zipped))
    assert "asks to run code when it is loaded (posix.system)" in message
    assert not mark.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    refused(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 1, 40, 400, -30])
def test_truncated(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path / "w.pt", WEIGHTS)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path)


def test_a_storage_shorter_than_its_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", WEIGHTS)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data[:8] if "/data/" in name else data)
    refused(path)


def test_an_expanded_tensor_cannot_claim_room(tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "w.pt", {"w": torch.zeros(1).expand(1 << 40)}))
    assert "tensor w of shape (1099511627776,) has more elements than the file holds" in message


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([1, 2], "holds a list, a state dict expected"),
        ({"a": 1}, "a is a int, a tensor expected"),
        ({"w": torch.eye(3).to_sparse()}, "tensor w is sparse, quantized or without data"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, value: object, what: str) -> None:
    assert what in refused(saved(tmp_path / "w.pt", value))


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", "utf-8")
    assert "is a file, but no torch state dict" in refused(tmp_path / "notes.txt")
    saved(tmp_path / "a.pt", WEIGHTS)
    saved(tmp_path / "optimizer.pt", {"state": {}})
    assert open_checkpoint(tmp_path).weight_files == (tmp_path / "a.pt",)
    saved(tmp_path / "b.pt", WEIGHTS)
    assert "holds 2 torch files (a.pt, b.pt); give the one that is meant" in refused(tmp_path)


def test_the_digest_covers_the_file_and_the_config(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", WEIGHTS)
    digests = [open_checkpoint(path).digest()]
    (tmp_path / "config.json").write_text("{}", "utf-8")
    digests.append(open_checkpoint(path).digest())
    saved(path, {"a": torch.zeros(2)})
    digests.append(open_checkpoint(path).digest())
    assert len(set(digests)) == 3
    assert open_checkpoint(tmp_path).digest() == digests[-1]


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", WEIGHTS)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    refused(path)


def test_tied_weights_share_a_record(tmp_path: Path) -> None:
    one = torch.randn(4, 3)
    found = read_state_dict(saved(tmp_path / "w.pt", {"a": one, "b": one, "c": one[1:], "empty": torch.zeros(0)}))
    assert np.array_equal(found.tensors["c"].array(), one[1:].numpy())
