"""Checks of a GGUF that is read as a model: the bounds of its keys on both sides, and keys that no lifter reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.targets.lift_checks import check_keys
from gguf_tools.targets.registry import lift
from tests.targets.test_lifting import changed, made

EXPERTS = {"expert_count": 4, "expert_used_count": 2}


@pytest.mark.parametrize(
    "keys",
    [
        {"block_count": 1},
        {"block_count": 512},
        {"block_count": 3, "nextn_predict_layers": 3},
        {"block_count": 1, "nextn_predict_layers": 1},
        {"expert_count": 1024, "expert_used_count": 1},
        {"expert_count": 4, "expert_used_count": 4},
        {"expert_count": 1, "expert_used_count": 1},
        {"expert_count": 0, "expert_used_count": 0},
        {**EXPERTS, "expert_group_count": 1},
        {**EXPERTS, "expert_group_count": 0},
        {"attention.sliding_window": 0, "attention.key_length": 16, "attention.key_length_swa": 32},
        {"attention.key_length": 16, "attention.key_length_swa": 32},
        {"attention.sliding_window": 8, "attention.key_length": 16, "attention.key_length_swa": 16},
        {"attention.sliding_window": 8, "embedding_length": 48, "attention.head_count": 3, "attention.key_length": None,
         "attention.value_length": None, "rope.dimension_count": None, "attention.key_length_swa": 16,
         "attention.value_length_swa": 16, "rope.dimension_count_swa": 16},
        {"attention.sliding_window": 8, "embedding_length": 48, "attention.head_count": 1, "attention.key_length": None,
         "attention.value_length": None, "rope.dimension_count": None, "attention.key_length_swa": 48},
        {"attention.sliding_window": 8, "embedding_length": 48, "attention.head_count": 0, "attention.key_length": None,
         "attention.value_length": None, "rope.dimension_count": None, "attention.key_length_swa": 48},
        {"attention.sliding_window": 8, "embedding_length": None, "attention.head_count": None, "attention.key_length": None,
         "attention.value_length": None, "rope.dimension_count": None, "attention.key_length_swa": 0},
        {"rope.scaling.type": "none"},
    ],
)  # fmt: skip
def test_accepted(keys: Mapping[str, Any]) -> None:
    check_keys(changed(made("llama"), keys))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"block_count": 0}, "block_count is 0; expected 1 to 512"),
        ({"block_count": 513}, "block_count is 513; expected 1 to 512"),
        ({"block_count": 3, "nextn_predict_layers": 4}, "nextn_predict_layers is 4; expected at most block_count, 3"),
        ({"expert_count": 1025, "expert_used_count": 1}, "expert_count is 1025; expected at most 1024"),
        ({"expert_count": 4, "expert_used_count": 5}, "expert_used_count is 5; expected 1 to 4"),
        ({"expert_count": 4, "expert_used_count": 0}, "expert_used_count is 0; expected 1 to 4"),
        ({"expert_count": 4, "expert_used_count": None}, "expert_used_count is 0; expected 1 to 4"),
        ({"expert_count": 0, "expert_used_count": 1}, "expert_used_count is 1; expected 0, as"),
        ({"rope.scaling.type": "x" * 60}, "rope.scaling.type is '" + "x" * 39 + "; expected"),
        ({"expert_count": 4, "expert_used_count": -1}, "expert_used_count is -1; expected numbers from 0"),
    ],
)
def test_refused(keys: Mapping[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        check_keys(changed(made("llama"), keys))


@pytest.mark.parametrize("name", ["attention.key_length", "attention.value_length", "rope.dimension_count"])
def test_layers_with_a_window_of_another_size(name: str) -> None:
    keys = {"attention.sliding_window": 1, name: 16, f"{name}_swa": 17}
    with pytest.raises(UnsupportedError, match=f"{name}_swa is 17, and {name} 16: layers with a window differ"):
        check_keys(changed(made("llama"), keys))


@pytest.mark.parametrize(("eps", "good"), [(0.0, True), (1e-30, True), (-1e-30, False), (float("inf"), False)])
def test_the_epsilon_of_a_norm(eps: float, good: bool) -> None:
    source = changed(made("llama"), {"attention.layer_norm_rms_epsilon": eps})
    if good:
        lift(source)
        return
    with pytest.raises(CheckpointError, match=r"the epsilon of a norm is -1e-30|epsilon is inf; expected a number"):
        lift(source)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"block_count": 513}, "block_count is 513; expected 1 to 512"),
        ({"nextn_predict_layers": 9}, "nextn_predict_layers is 9; expected at most block_count"),
        ({"expert_count": 1025}, "expert_count is 1025; expected at most 1024"),
        ({"expert_count": 2}, "expert_used_count is 0; expected 1 to 2, expert_count"),
        ({"expert_used_count": (0, 3)}, "expert_used_count is 3; expected 0, as expert_count is"),
        ({"expert_used_count": "two"}, "expert_used_count is 'two'; expected numbers from 0"),
        ({"rope.scaling.type": "ntk"}, "rope.scaling.type is 'ntk'; expected one of none, linear, yarn, longrope"),
        ({"attention.layer_norm_rms_epsilon": -1e-5}, "the epsilon of a norm is -1e-05"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 0},
            "the original context of YaRN is 0 tokens",
        ),
    ],
)
def test_numbers_on_which_llama_cpp_ends_its_process_are_refused(keys: Mapping[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(says)) as raised:
        lift(changed(made("llama"), keys))
    assert str(raised.value).startswith("made.gguf: ")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"attention.causal": False}, "llama.attention.causal is false"),
        ({"expert_count": 4, "expert_used_count": 2, "expert_group_count": 2}, "llama.expert_group_count is 2"),
        ({"rope.scaling.attn_factor": 1.3}, "llama.rope.scaling.attn_factor is 1.3 beside neither YaRN nor LongRoPE"),
    ],
)
def test_keys_that_every_architecture_reads_and_no_lifter_does_are_refused(keys: Mapping[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        lift(changed(made("llama"), keys))


@pytest.mark.parametrize("key", ["attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"])
def test_layers_with_a_window_that_have_other_sizes_are_refused(key: str) -> None:
    file = made("cohere2")
    full = file.integer(key.removesuffix("_swa"), 8)
    assert lift(changed(file, {key: full})).spec == lift(file).spec
    with pytest.raises(UnsupportedError, match=f"cohere2.{key} is {full // 2}, and .* layers with a window differ"):
        lift(changed(file, {key: full // 2}))


@pytest.mark.parametrize(
    ("name", "key", "none", "value"),
    [
        ("glm4", "rope.dimension_sections", (0, 0, 0, 0), (4, 2, 2, 0)),
        ("glm4moe", "rope.dimension_sections", (0, 0, 0, 0), (4, 2, 2, 0)),
        ("hunyuan-dense", "rope.scaling.alpha", 0.0, 50.0),
        ("lfm2", "attention.sliding_window", 0, 5),
        ("lfm2moe", "attention.sliding_window", 0, 5),
    ],
)
def test_keys_that_an_architectures_graph_reads_and_its_lifter_does_not(
    name: str, key: str, none: object, value: object
) -> None:
    assert lift(changed(made(name), {key: none})).spec == lift(made(name)).spec
    with pytest.raises(UnsupportedError, match=re.escape(f"{name}.{key} is {value}")):
        lift(changed(made(name), {key: value}))
