"""llama.cpp's `mamba2`: what it lacks, what a file says, and files that contradict themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.families.mamba2 import tiny
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.header import u32
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import LayerSpec, Mamba2, Norm
from gguf_tools.targets.registry import all_targets, lift, target_named
from gguf_tools.tensors.base import InMemory
from tests.oracle import convert
from tests.random_model import layer, random_model

SPACE = Mamba2(heads=4, head_dim=6, groups=2, state=5, kernel=3, norm=Norm(1e-6), conv_bias=True)
BARE = LayerSpec(SPACE, None, Norm(1e-6), None)


@pytest.mark.parametrize(
    ("layers", "lack"),
    [
        ([BARE, layer()], "full attention layers"),
        ([layer(SPACE)], "layers without experts"),
        ([replace(BARE, mixer=replace(SPACE, norm=None))], "state spaces without a norm of their output"),
        ([replace(BARE, mixer=replace(SPACE, norm_first=True))], "a norm of the state space's output before its gate"),
        ([replace(BARE, mixer=replace(SPACE, kernel=1))], "a convolution over 1 token"),
        ([replace(BARE, mixer=replace(SPACE, bias=frozenset({"o"})))], "biases on the state space's output projection"),
        ([replace(BARE, mixer=replace(SPACE, step_limit=(0.0, 1.0)))], "limited steps of the state space"),
        ([BARE, replace(BARE, mixer=replace(SPACE, state=4))], "layers that differ in the sizes of state spaces"),
        ([replace(BARE, mixer=replace(SPACE, norm=Norm(1e-5)))], "layers that differ in norm epsilon"),
        ([replace(BARE, mixer_norm=None)], "layers without a norm before the mixer"),
    ],
)
def test_mamba2_names_what_it_lacks(layers: Sequence[LayerSpec], lack: str) -> None:
    assert lack in "; ".join(target_named("mamba2").lacks(random_model(layers).spec))


def test_only_mamba2_takes_such_a_model() -> None:
    spec = random_model([BARE, BARE]).spec
    assert [target.name for target in all_targets() if not target.lacks(spec)] == ["mamba2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mamba2") / "source"
    tiny(made, "plain", 1)
    return made


def test_the_authors_folder_is_the_same_model(source: Path, tmp_path: Path) -> None:
    tiny(tmp_path / "authors", "authors", 1)
    ours, theirs = load_model(source), load_model(tmp_path / "authors")
    assert ours.spec == theirs.spec
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert all(np.array_equal(one.tensors[role].array(), other.tensors[role].array()) for role in one.tensors)


def test_the_file_is_read_as_it_was_written(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out.gguf")
    opened, model = open_gguf(out), load_model(source)
    assert opened.header.get("mamba2.ssm.time_step_rank") == 4
    assert opened.header.get("mamba2.ssm.group_count") == 2
    lifted = lift(opened)
    assert lifted.spec.pattern == model.spec.pattern == "mmm"
    same = ("ssm.z", "ssm.x", "ssm.b", "ssm.c", "ssm.step", "ssm.skip", "ssm.norm", "ssm.conv", "ssm.o")
    for ours, theirs in zip(model.layers, lifted.layers, strict=True):
        assert all(np.array_equal(ours.tensors[role].array(), theirs.tensors[role].array()) for role in same)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ssm.time_step_rank", 3, "128 channels of the state space .* do not divide into 3 heads"),
        ("ssm.group_count", 3, "in 3 groups"),
        ("ssm.time_step_rank", 8, "tensor blk.0.ssm_a does not have the size"),
        ("ssm.state_size", 12, "tensor blk.0.ssm_in.weight does not have the size"),
    ],
)
def test_a_file_whose_keys_do_not_fit_its_tensors(
    source: Path, tmp_path: Path, key: str, value: int, words: str
) -> None:
    opened = open_gguf(convert(source, tmp_path / "out.gguf"))
    header = replace(opened.header, metadata={**opened.header.metadata, f"mamba2.{key}": u32(value)})
    with pytest.raises(CheckpointError, match=words):
        lift(replace(opened, header=header))


def test_a_decay_of_another_length_is_refused(source: Path, tmp_path: Path) -> None:
    opened = open_gguf(convert(source, tmp_path / "out.gguf"))
    short = {**opened.tensors, "blk.0.ssm_a": InMemory(np.zeros((3, 1), np.float32), ("blk.0.ssm_a",))}
    with pytest.raises(CheckpointError, match=r"tensor blk\.0\.ssm_a does not have the size"):
        lift(replace(opened, tensors=short))
