"""llama.cpp's `granitehybrid` and Granite 4: what the target lacks, what a file says, and a config that contradicts tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.families.granite_hybrid import tiny
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.header import Field, ValueType, array, read_header
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import Attention, LayerSpec, Mamba2, Norm, SharedExpert
from gguf_tools.targets.registry import all_targets, lift, target_named
from tests.oracle import convert
from tests.random_model import ATTENTION, EXPERTS, layer, random_model

SPACE = Mamba2(heads=4, head_dim=12, groups=2, state=5, kernel=3, norm=Norm(1e-6))
NOPE = replace(ATTENTION, qk_norm=None, rope=None)
BESIDE = replace(EXPERTS, shared=SharedExpert(8, False))


def test_only_granitehybrid_takes_state_spaces_among_attention_layers() -> None:
    for ffn in (BESIDE, EXPERTS):
        spec = random_model([layer(SPACE, ffn), layer(NOPE, ffn)], embedding_scale=12.0, logit_scale=0.125).spec
        assert [target.name for target in all_targets() if not target.lacks(spec)] == ["granitehybrid"]


@pytest.mark.parametrize(
    ("layers", "lack"),
    [
        ([layer(SPACE)], "a model without full attention layers"),
        ([layer(NOPE)], "a model without state space layers"),
        ([layer(NOPE), layer(replace(SPACE, head_dim=6))], "a state space of 24 channels with a hidden size of 24"),
        ([layer(NOPE), layer(replace(SPACE, norm=None))], "state spaces without a norm of their output"),
        (
            [layer(SPACE), layer(NOPE), layer(replace(ATTENTION, qk_norm=None))],
            "layers without rope among layers with rope",
        ),
        ([layer(SPACE), layer(NOPE, EXPERTS)], "dense layers among MoE layers"),
        ([layer(SPACE, EXPERTS), layer(NOPE, BESIDE)], "layers without a shared expert among layers that have one"),
        ([layer(NOPE), replace(layer(SPACE), feed_forward=None, ffn_norm=None)], "layers without a feed-forward"),
    ],
)
def test_granitehybrid_names_what_it_lacks(layers: Sequence[LayerSpec], lack: str) -> None:
    assert lack in "; ".join(target_named("granitehybrid").lacks(random_model(layers).spec))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("granite") / "source"
    tiny(made, "plain", 1)
    return made


def test_what_the_file_says(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out.gguf")
    header, spec, want = read_header(out), lift(open_gguf(out)).spec, load_model(source).spec
    stated = {
        "attention.head_count_kv": (0, 2, 0),
        "rope.scaling.finetuned": False,
        "feed_forward_length": 32,
        "expert_shared_feed_forward_length": 64,
    }
    assert {key: header.get(f"granitehybrid.{key}") for key in stated} == stated
    assert spec.pattern == want.pattern == "MAM"
    mixer, wanted = spec.layers[1].mixer, want.layers[1].mixer
    assert isinstance(mixer, Attention)
    assert mixer.scale == pytest.approx(0.4)
    assert replace(mixer, scale=0.4) == wanted
    assert [one.residual_scale for one in spec.layers] == pytest.approx([0.22] * 3)
    assert (spec.embedding_scale, spec.logit_scale) == pytest.approx((12.0, 0.125))


@pytest.mark.parametrize("listed", [array(ValueType.INT32, [0, 2]), array(ValueType.INT32, [0, -1, 0])])
def test_a_file_whose_list_of_heads_is_wrong(source: Path, tmp_path: Path, listed: Field) -> None:
    opened = open_gguf(convert(source, tmp_path / "out.gguf"))
    metadata = {**opened.header.metadata, "granitehybrid.attention.head_count_kv": listed}
    with pytest.raises(CheckpointError, match=r"head_count_kv has no number of heads for layer [12]"):
        lift(replace(opened, header=replace(opened.header, metadata=metadata)))


def test_a_config_that_names_other_layers_is_noted_and_one_without_a_class_must_say_whether_it_has_rope(
    tmp_path: Path,
) -> None:
    tiny(tmp_path, "plain", 1)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "layer_types": ["mamba", "mamba", "linear_attention"]}), "utf-8")
    (note,) = load_model(tmp_path).notes
    assert "layer 1 is mamba, but its tensors are not" in note
    left = {key: value for key, value in config.items() if key not in ("model_type", "position_embedding_type")}
    path.write_text(json.dumps(left), "utf-8")
    with pytest.raises(CheckpointError, match="position_embedding_type is missing"):
        load_model(tmp_path)
