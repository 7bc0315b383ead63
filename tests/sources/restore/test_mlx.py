"""Checkpoints that MLX saved: the published layout comes back, by what the metadata say and not by values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny.hybrid import NEXT_VARIANTS, QWEN35_VARIANTS, Shape, as_mlx, config_of, shapes, write
from gguf_tools.families.tiny.writing import PYTORCH, random_tensors, write_checkpoint
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.restore import restore
from tests.random_model import named

MLX = {"format": "mlx"}
SHAPES = [NEXT_VARIANTS["mlx"], QWEN35_VARIANTS["mlx"], QWEN35_VARIANTS["moe-mlx"]]


def pair(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """The same random weights as published, and as MLX saves them."""
    tensors = random_tensors(shapes(shape), 3)
    write_checkpoint(folder / "published", config_of(shape), tensors)
    write_checkpoint(folder / "mlx", config_of(shape), as_mlx(tensors, shape), metadata=MLX)
    return folder / "published", folder / "mlx"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_published_weights_come_back(tmp_path: Path, shape: Shape) -> None:
    published, saved = map(load_model, pair(tmp_path, shape))
    assert saved.spec == published.spec
    found = named(saved)
    for role, tensor in named(published).items():
        # 1 was added and taken off in float32.
        tolerance = 2e-7 if "norm" in role else 0.0
        np.testing.assert_allclose(found[role].array(), tensor.array(), rtol=0, atol=tolerance)
    assert any(note.startswith("saved by MLX") and "norm weights" in note for note in saved.notes)


def test_restoring_twice_is_restoring_once(tmp_path: Path) -> None:
    _, saved = pair(tmp_path, SHAPES[0])
    once = restore(open_checkpoint(saved))
    twice = restore(once)
    assert twice.tensors is once.tensors or twice.tensors == once.tensors
    assert twice.notes == once.notes


def test_only_the_metadata_decide(tmp_path: Path) -> None:
    _, saved = pair(tmp_path, SHAPES[0])
    tensors = {name: tensor.array() for name, tensor in open_checkpoint(saved).tensors.items()}
    config = json.loads((saved / "config.json").read_text("utf-8"))
    write_checkpoint(tmp_path / "again", config, tensors, metadata=PYTORCH)
    with pytest.raises(CheckpointError, match=r"conv1d\.weight has shape \(128, 4, 1\)"):
        load_model(tmp_path / "again")


def test_what_mlx_did_not_transform_is_left_alone(tmp_path: Path) -> None:
    shape = Shape(layers="DA")
    tensors = random_tensors(shapes(shape), 3)
    write_checkpoint(tmp_path, config_of(shape), tensors, metadata=MLX)
    model = load_model(tmp_path)
    assert any("read as published" in note for note in model.notes)
    assert np.array_equal(model.tensors["output_norm"].array(), tensors["model.norm.weight"])


def test_norms_without_an_offset_stay(tmp_path: Path) -> None:
    from gguf_tools.families.tiny import attention as field_tiny

    tensors = random_tensors(field_tiny.shapes(field_tiny.QWEN3["plain"]), 3)
    config = {**field_tiny.BASE, **field_tiny.QWEN3["plain"].config}
    write_checkpoint(tmp_path, config, tensors, metadata=MLX)
    model = load_model(tmp_path)
    assert np.array_equal(model.tensors["output_norm"].array(), tensors["model.norm.weight"])
    assert "saved by MLX: nothing to undo" in model.notes


def test_a_stack_that_is_none(tmp_path: Path) -> None:
    shape = NEXT_VARIANTS["mlx"]
    tensors = as_mlx(random_tensors(shapes(shape), 3), shape)
    name = "model.layers.0.mlp.switch_mlp.up_proj.weight"
    tensors[name] = tensors[name][0]
    write_checkpoint(tmp_path, config_of(shape), tensors, metadata=MLX)
    with pytest.raises(
        CheckpointError, match=rf"tensor {name} has shape \(64, 64\); expected \(experts, rows, columns\)"
    ):
        load_model(tmp_path)


def test_sharded_files_carry_the_metadata(tmp_path: Path) -> None:
    shape = QWEN35_VARIANTS["moe-mlx"]
    tensors = as_mlx(random_tensors(shapes(shape), 3), shape)
    write_checkpoint(tmp_path, config_of(shape), tensors, shards=2, metadata=MLX)
    assert any(note.startswith("saved by MLX") for note in load_model(tmp_path).notes)


def test_a_missing_rotary_share_is_assumed_as_transformers_does(tmp_path: Path) -> None:
    write(tmp_path, Shape(layers="DA", yarn=False), 1)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["rope_parameters"]["partial_rotary_factor"]
    path.write_text(json.dumps(config), "utf-8")
    assert any("partial_rotary_factor: 0.25 is assumed" in note for note in load_model(tmp_path).notes)
