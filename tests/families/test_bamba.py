"""Bamba: which layers have attention, by tensors and by a config that contradicts them, and after surgery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.families.bamba import tiny
from gguf_tools.families.registry import load_model
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.recipe import parse_text


def edited(folder: Path, **changes: Any) -> Path:
    """A small checkpoint with other values in its config."""
    tiny(folder, "plain", 1)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return folder


def test_tensors_decide_which_layers_have_attention(tmp_path: Path) -> None:
    model = load_model(edited(tmp_path / "made", attn_layer_indices=[2]))
    assert model.spec.pattern == "mam"
    assert [
        f"the tensors of model.layers.{n}.* contradict" in note for n, note in zip((1, 2), model.notes, strict=True)
    ]


def test_a_list_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="attn_layer_indices is 3; expected a list of layers' numbers"):
        load_model(edited(tmp_path / "made", attn_layer_indices=3))


def test_the_list_follows_surgery(tmp_path: Path) -> None:
    tiny(tmp_path / "made", "plain", 1)
    write_checkpoint(plan_checkpoint(tmp_path / "made", parse_text("duplicate(1) + move(0:3)")), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["attn_layer_indices"] == [0, 1]
    model = load_model(tmp_path / "out")
    assert model.spec.pattern == "aamm"
    assert not model.notes
