"""The numbers at which a GGUF's keys stop being accepted, each tried on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.model.rope import YarnScaling
from gguf_tools.targets import lifting
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


def test_yarn_with_an_original_context_of_one_token() -> None:
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 1}
    scaling = lifting.lift_rope(changed(made("llama"), keys), 8).scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.original_context == 1


def test_a_base_of_rope_of_one() -> None:
    assert lifting.lift_rope(changed(made("llama"), {"rope.freq_base": 1.0}), 8, 8).theta == 1.0
