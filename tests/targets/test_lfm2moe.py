"""llama.cpp's `lfm2moe` and LFM2-MoE: what the target lacks, what a file says, and configs that contradict the tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.families.lfm2_moe import tiny
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import LayerSpec, MoE, Router, SharedExpert, ShortConv
from gguf_tools.targets.registry import lift, target_named
from surgery.checkpoint.rewrite import plan_checkpoint, write_checkpoint
from surgery.recipe import parse_text
from tests.oracle import convert
from tests.random_model import ATTENTION, layer, random_model

ROUTER = Router(top_k=2, score="sigmoid", score_bias=True, sum_eps=1e-6)
EXPERTS = MoE(4, 12, ROUTER)
SQUARE = replace(ATTENTION, heads=3, kv_heads=3)
CONV, DENSE, ROUTED = layer(ShortConv(3), EXPERTS), layer(ShortConv(3)), layer(SQUARE, EXPERTS)


def test_lfm2moe_takes_dense_layers_before_those_with_experts() -> None:
    assert not target_named("lfm2moe").lacks(random_model([DENSE, ROUTED, CONV]).spec)


@pytest.mark.parametrize(
    ("layers", "lack"),
    [
        ([CONV, ROUTED, DENSE], "dense layers after layers with experts"),
        ([DENSE, layer(SQUARE)], "a model without experts"),
        ([CONV, CONV], "a model without full attention layers"),
        ([CONV, replace(ROUTED, feed_forward=replace(EXPERTS, shared=SharedExpert(8, False)))], "a shared expert"),
        ([CONV, replace(ROUTED, feed_forward=MoE(4, 12, replace(ROUTER, scale=2.0)))], "scaled router weights"),
        ([CONV, replace(ROUTED, feed_forward=MoE(4, 12, replace(ROUTER, sum_eps=1e-3)))], "their sum plus 0.001"),
        ([CONV, replace(ROUTED, feed_forward=MoE(4, 12, replace(ROUTER, normalised=False)))], "not renormalised"),
    ],
)
def test_lfm2moe_names_what_it_lacks(layers: Sequence[LayerSpec], lack: str) -> None:
    assert lack in "; ".join(target_named("lfm2moe").lacks(random_model(layers).spec))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lfm2moe") / "source"
    tiny(made, "plain", 1)
    return made


def test_what_the_file_says(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out.gguf")
    header, spec = read_header(out), lift(open_gguf(out)).spec
    stated = {
        "leading_dense_block_count": 1,
        "expert_gating_func": 2,
        "expert_count": 6,
        "expert_used_count": 2,
        "attention.head_count_kv": (0, 2, 0, 0),
    }
    assert {key: header.get(f"lfm2moe.{key}") for key in stated} == stated
    want = load_model(source).spec
    assert [type(one.feed_forward) for one in spec.layers] == [type(one.feed_forward) for one in want.layers]
    assert spec.pattern == want.pattern == "cACC"


def edited(folder: Path, **changes: Any) -> Path:
    """The checkpoint with other values in its config."""
    tiny(folder, "plain", 1)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return folder


def test_a_config_that_contradicts_the_tensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"use_expert_bias is False, but the tensors have model\.layers\.1\."):
        load_model(edited(tmp_path / "bias", use_expert_bias=False))
    with pytest.raises(CheckpointError, match="num_experts_per_tok is 7, but the router has 6 experts"):
        load_model(edited(tmp_path / "top", num_experts_per_tok=7))
    noted = load_model(edited(tmp_path / "dense", num_dense_layers=2))
    assert any("num_dense_layers 2, but the tensors have 1" in note for note in noted.notes)


def test_the_number_of_dense_layers_follows_surgery(source: Path, tmp_path: Path) -> None:
    write_checkpoint(plan_checkpoint(source, parse_text("delete(0)")), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["num_dense_layers"] == 0
    assert load_model(tmp_path / "out").spec.pattern == "ACC"
    with pytest.raises(UnsupportedError, match="layer 1 would be dense, but num_dense_layers"):
        write_checkpoint(plan_checkpoint(source, parse_text("swap(0:1)")), tmp_path / "moved")
