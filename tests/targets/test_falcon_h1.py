"""llama.cpp's `falcon-h1` and Falcon-H1: what the target lacks, what a file says, and the multipliers of a config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.families.falcon_h1 import tiny
from gguf_tools.families.registry import load_model
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.model.spec import LayerSpec, Mamba2, Norm
from gguf_tools.targets.registry import all_targets, lift, target_named
from tests.oracle import convert
from tests.random_model import ATTENTION, EXPERTS, layer, random_model

SPACE = Mamba2(heads=4, head_dim=6, groups=2, state=5, kernel=3)
PLAIN = replace(ATTENTION, qk_norm=None)
BOTH = replace(layer(PLAIN), beside=SPACE)


def test_only_falcon_h1_takes_attention_beside_a_state_space() -> None:
    spec = random_model([BOTH, replace(BOTH, beside=replace(SPACE, norm=Norm(1e-6), conv_bias=True))]).spec
    assert [target.name for target in all_targets() if not target.lacks(spec)] == ["falcon-h1"]


@pytest.mark.parametrize(
    ("layers", "lack"),
    [
        ([BOTH, layer(PLAIN)], "layers without a state space beside the attention"),
        ([BOTH, layer(SPACE)], "state space layers"),
        ([replace(layer(), beside=SPACE)], "q/k norm"),
        ([replace(layer(replace(PLAIN, bias=frozenset("o"))), beside=SPACE)], "a bias on the attention output"),
        ([replace(layer(replace(PLAIN, window=5)), beside=SPACE)], "a sliding window of 5 tokens"),
        ([replace(BOTH, feed_forward=EXPERTS)], "experts"),
        ([replace(BOTH, feed_forward=None, ffn_norm=None)], "layers without a feed-forward"),
        ([BOTH, replace(BOTH, beside=replace(SPACE, groups=1))], "layers that differ in the sizes of state spaces"),
        ([replace(BOTH, beside=replace(SPACE, norm=Norm(1e-6), norm_first=True))], "output before its gate"),
        ([replace(BOTH, multipliers=(("attn.k", 0.5),))], "multipliers of matrices"),
    ],
)
def test_falcon_h1_names_what_it_lacks(layers: Sequence[LayerSpec], lack: str) -> None:
    assert lack in "; ".join(target_named("falcon-h1").lacks(random_model(layers).spec))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("falcon") / "source"
    tiny(made, "plain", 1)
    return made


def test_the_file_has_the_products(source: Path, tmp_path: Path) -> None:
    model, opened = load_model(source), open_gguf(convert(source, tmp_path / "out.gguf"))
    assert "blk.0.ffn_norm" in opened.tensors  # without .weight, as the loader asks for it
    lifted = lift(opened)
    assert lifted.spec.pattern == model.spec.pattern == "hhh"
    assert not lifted.spec.layers[0].multipliers
    factors = dict(model.spec.layers[0].multipliers)
    assert factors["attn.k"] == pytest.approx(1.25 * 0.6)
    assert factors["ssm.b"] == pytest.approx(1.5 * 0.8)
    for ours, theirs in zip(model.layers, lifted.layers, strict=True):
        for role in ("attn.q", "attn.k", "attn.o", "ssm.z", "ssm.step", "ssm.o", "ffn.gate", "ffn.up", "ffn.down"):
            wanted = ours.tensors[role].array() * factors.get(role, 1.0)
            np.testing.assert_allclose(theirs.tensors[role].array(), wanted, rtol=1e-6)
        assert np.array_equal(theirs.tensors["ssm.conv_bias"].array(), ours.tensors["ssm.conv_bias"].array())


def edited(folder: Path, **changes: Any) -> Path:
    """A small checkpoint with other values in its config."""
    tiny(folder, "plain", 1)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ssm_multipliers": [1.0, 1.0]}, r"ssm_multipliers is \[1\.0, 1\.0\]; expected 5 numbers of at least 0"),
        ({"mlp_multipliers": [1.0, "2"]}, "mlp_multipliers is .* expected 2 numbers"),
        ({"key_multiplier": -1.0}, "key_multiplier is -1.0; expected a number of at least 0"),
        ({"embedding_multiplier": 0.0}, "embedding_multiplier is 0.0; expected a number above 0"),
        ({"mamba_n_groups": 4}, "do not divide into 6 heads .* in 4 groups"),
        ({"time_step_limit": [0.0]}, "time_step_limit is .* expected two numbers"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_model(edited(tmp_path / "made", **changes))
