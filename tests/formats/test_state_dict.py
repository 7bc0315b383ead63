"""Torch state dicts as sources: what opens, what is refused, and that nothing in them runs."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import io
import json
import os
import pickle
import re
import struct
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
    found = open_checkpoint(path)
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


PLACES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda w: {"module": w, "ds_version": "0.16"}, "ds_version"),
    (lambda w: {"state_dict": w, "loops": {}, "hyper_parameters": {"lr": 1e-4}}, "loops, hyper_parameters"),
    (lambda w: {"app": {"model": w, "optim": {"state": {}}}, "epoch": 1}, "epoch"),
    (lambda w: {"net": w, "optimizer": {"state": {}, "param_groups": []}}, "optimizer"),
    (lambda w: {"model": w, "ema": w}, "ema"),
]


@pytest.mark.parametrize(("place", "left_out"), PLACES)
def test_where_programs_keep_the_weights(tmp_path: Path, place: Callable[[Any], Any], left_out: str) -> None:
    found = open_checkpoint(saved(tmp_path / "last.ckpt", place(WEIGHTS)))
    assert list(found.tensors) == list(WEIGHTS)
    assert found.notes == (f"last.ckpt also holds {left_out}: left out",)


def test_several_state_dicts_of_which_none_is_known(tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "w.pt", {"generator": WEIGHTS, "critic": WEIGHTS}))
    assert "holds 2 state dicts (generator, critic)" in message


def test_partitioned_weights(tmp_path: Path) -> None:
    message = refused(saved(tmp_path / "w.pt", {"module": {"a.weight": torch.empty(0), "b.weight": torch.empty(0)}}))
    assert "zero_to_fp32.py" in message


def test_a_truth_value_or_an_integer_is_a_number_too(tmp_path: Path) -> None:
    made = {
        "b": torch.tensor([True, False]),
        "i": torch.tensor([[3, -4]]),
        "f": torch.tensor([0.5], dtype=torch.float16),
    }
    found = read_state_dict(saved(tmp_path / "w.pt", made)).tensors
    for name, tensor in made.items():
        assert np.array_equal(found[name].numbers(0, tensor.numel()), tensor.reshape(-1).double().numpy())
    with pytest.raises(CheckpointError, match="tensor i is stored as I64"):
        found["i"].array()


def test_plain_objects_beside_the_weights(tmp_path: Path) -> None:
    """What needs a class of numpy, pathlib … to be unpickled is skipped without loading that class."""
    beside = {
        "loss": np.mean([1.0, 2.0]),
        "state": np.random.default_rng(0).random(3),
        "rng": np.random.RandomState(0).get_state(),
        "dtype": np.dtype("float32"),
        "args": argparse.Namespace(lr=1e-4, out=Path("x")),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "counts": collections.defaultdict(int, a=1),
        "bytes": io.BytesIO(b"abc"),
    }
    found = open_checkpoint(saved(tmp_path / "w.pt", {"model": WEIGHTS, **beside}))
    assert list(found.tensors) == list(WEIGHTS)
    assert found.notes == (f"w.pt also holds {', '.join(beside)}: left out",)
    message = refused(saved(tmp_path / "w.pt", {"a.weight": torch.ones(2), "b.weight": np.ones(3)}))
    assert "b.weight is a NotLoaded; expected a tensor" in message


@pytest.mark.parametrize("name", ["numpy.load", "builtins.eval", "pathlib.Path.unlink", "argparse.ArgumentParser"])
def test_only_what_is_listed_has_a_stand_in(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    path = saved(tmp_path / "w.pt", {"model": WEIGHTS, "mark": "@" * 8})
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    named = f"c{module}\n{attribute}\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in files.items():
            # The string's opcode, its length and its text become a reference to the function.
            archive.writestr(entry, data.replace(b"X\x08\0\0\0@@@@@@@@", named) if entry.endswith("data.pkl") else data)
    assert "would run code when loaded" in refused(path)


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
    assert "would run code when loaded (posix.system)" in message
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


def test_an_archive_of_several_disks(tmp_path: Path) -> None:
    """zipfile raises for it where it only asks whether a file is an archive."""
    path = saved(tmp_path / "w.pt", WEIGHTS)
    data = path.read_bytes()
    for locator in (b"", b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 2)):
        path.write_bytes(data[:-22] + locator + data[-22:])
        if locator:
            assert "its list of records cannot be read" in refused(path)


def test_an_archive_that_only_torch_reads(tmp_path: Path) -> None:
    """Python's zipfile wants the extraction version to be one that it knows."""
    path = saved(tmp_path / "w.pt", WEIGHTS)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(data)
    assert "its list of records cannot be read (zip file version 9.9)" in refused(path)


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
    assert "tensor w of shape (1099511627776,) has more elements than its storage" in message


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([1, 2], "holds a list; expected a state dict"),
        ({"a": 1}, "a is a int; expected a tensor"),
        ({"w": torch.eye(3).to_sparse()}, "tensor w is sparse, nested, quantized or without data"),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, value: object, what: str) -> None:
    assert what in refused(saved(tmp_path / "w.pt", value))


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", "utf-8")
    assert "is neither safetensors nor a torch state dict" in refused(tmp_path / "notes.txt")
    saved(tmp_path / "a.pt", WEIGHTS)
    saved(tmp_path / "optimizer.pt", {"state": {}})
    assert open_checkpoint(tmp_path).weight_files == (tmp_path / "a.pt",)
    saved(tmp_path / "b.pt", WEIGHTS)
    assert "holds 2 torch files (a.pt, b.pt); expected one; give the file to convert" in refused(tmp_path)


def test_the_digest_covers_the_file_and_the_config(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", WEIGHTS)
    digests = [open_checkpoint(path).digest()]
    (tmp_path / "config.json").write_text("{}", "utf-8")
    digests.append(open_checkpoint(path).digest())
    saved(path, {"a": torch.zeros(2)})
    digests.append(open_checkpoint(path).digest())
    assert len(set(digests)) == 3
    assert open_checkpoint(tmp_path).digest() == digests[-1]


def test_compressed_records_are_refused_before_they_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expanded(*_: object, **__: object) -> None:
        raise AssertionError("torch expands the records")

    path = saved(tmp_path / "w.pt", WEIGHTS)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    monkeypatch.setattr(torch, "load", expanded)
    assert re.search(
        r"its record .* is compressed \([\d,]+ bytes for [\d,]+\), which torch.save does not do", refused(path)
    )


def test_tied_weights_share_a_record(tmp_path: Path) -> None:
    one = torch.randn(4, 3)
    found = read_state_dict(saved(tmp_path / "w.pt", {"a": one, "b": one, "c": one[1:], "empty": torch.zeros(0)}))
    assert np.array_equal(found.tensors["c"].array(), one[1:].numpy())


def test_a_config_of_other_than_plain_values(tmp_path: Path) -> None:
    """They would fail where a family compares or shows them."""
    itself: list[Any] = [1]
    itself.append(itself)
    config = {
        "a": torch.ones(3),
        "b": 1 << 1900,
        "c": (1, "x", None, 2.5, True),
        "d": {"e": [torch.bfloat16]},
        "f": itself,
        7: b"bytes",
    }
    found = read_state_dict(saved(tmp_path / "w.pt", {"model": WEIGHTS, "cfg": config})).config
    assert {**found, "f": None} == {
        "a": "<Tensor>",
        "b": "<int>",
        "c": [1, "x", None, 2.5, True],
        "d": {"e": ["<dtype>"]},
        "f": None,
        "7": "<bytes>",
    }
    assert repr(found["f"]).count("[") == 8


def test_a_config_without_end(tmp_path: Path) -> None:
    """A few references stand for any number of values."""
    value: list[Any] = [0] * 10
    for _ in range(7):
        value = [value] * 10
    message = refused(saved(tmp_path / "w.pt", {"model": WEIGHTS, "cfg": {"a": value}}))
    assert "its config has more than 100,000 values" in message


@pytest.mark.parametrize("key", [1 << 1900, (1, 2), 2.5])
def test_names_that_are_not_text(tmp_path: Path, key: object) -> None:
    for value in (
        {"a": torch.ones(2), key: torch.ones(2)},
        {"model": WEIGHTS, "cfg": {key: 1}},
        {"model": WEIGHTS, key: 1},
    ):
        assert f"has a {type(key).__name__} as a name; expected text" in refused(saved(tmp_path / "w.pt", value))


@dataclasses.dataclass
class Settings:
    n_layer: int
    inner: object


def renamed(path: Path, module: bytes) -> Path:
    """The state dict with this module's name in its pickle replaced by `module`."""
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    assert any(f"c{__name__}\n".encode() in data for data in files.values())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in files.items():
            archive.writestr(entry, data.replace(f"c{__name__}\n".encode(), b"c" + module + b"\n"))
    return path


@pytest.mark.parametrize("module", [b"__main__", b"train.config", b"no.such.module"])
def test_a_config_of_a_class_of_the_programs_own(tmp_path: Path, module: bytes) -> None:
    """Its attributes are read as data, those of objects within it too; the class is never looked up."""
    settings = Settings(2, Settings(3, [1, "x"]))
    path = renamed(saved(tmp_path / "w.pt", {"model": WEIGHTS, "config": settings, "step": 1}), module)
    found = read_state_dict(path)
    assert found.config == {"n_layer": 2, "inner": {"n_layer": 3, "inner": [1, "x"]}}
    assert found.left_out == ("step",)
    assert list(found.tensors) == list(WEIGHTS)


@pytest.mark.parametrize("module", [b"numpy.random", b"argparse", b"torch.nn", b"builtins"])
def test_such_a_class_of_known_packages_is_refused(tmp_path: Path, module: bytes) -> None:
    path = renamed(saved(tmp_path / "w.pt", {"model": WEIGHTS, "config": Settings(2, None)}), module)
    assert "would run code when loaded" in refused(path)


class Calling:
    def __reduce__(self) -> tuple[Any, ...]:
        return Settings, (1, 2)


def test_a_call_with_arguments_is_refused(tmp_path: Path) -> None:
    path = renamed(saved(tmp_path / "w.pt", {"model": WEIGHTS, "config": Calling()}), b"own.code")
    assert "would run code when loaded (own.code.Settings)" in refused(path)


def test_an_object_is_no_tensor_and_no_state_dict(tmp_path: Path) -> None:
    path = renamed(saved(tmp_path / "w.pt", {**WEIGHTS, "c": Settings(2, None)}), b"__main__")
    assert "c is a Settings; expected a tensor" in refused(path)
    path = renamed(saved(tmp_path / "w.pt", Settings(2, None)), b"__main__")
    assert "holds a Settings; expected a state dict" in refused(path)
