"""The table of what transformers' config classes assume, row by row against the installed library."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from gguf_tools.families.hf_classes import CLASSES
from gguf_tools.families.registry import own_families

LAYERS, FIRST = 9, 3


def text_config(kind: str, **stated: Any) -> Any:
    """The config of the text model that transformers makes for this model_type."""
    made: Any = AutoConfig.for_model(kind)
    return type(made.get_text_config())(**stated)


def fields(kind: str) -> dict[str, Any]:
    """Every key that the class declares, with its default."""
    return {field.name: field.default for field in dataclasses.fields(text_config(kind))}


def test_every_declared_model_type_has_a_row_and_every_row_is_declared() -> None:
    """Types of code that transformers does not have (MiniMind) have no row."""
    declared = {kind for family in own_families() for kind in family.model_types}
    assert declared & set(CONFIG_MAPPING) == set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults(kind: str) -> None:
    declared, rules = fields(kind), CLASSES[kind]
    assert {key: declared[key] for key in rules.defaults} == rules.defaults
    # A default that the class has and the row lacks would be a refusal, or a misreading.
    for key in ("rms_norm_eps", "max_position_embeddings", "head_dim", "num_experts_per_tok", "norm_topk_prob"):
        assert declared.get(key) == rules.defaults.get(key)


@pytest.mark.parametrize("kind", CLASSES)
def test_rope(kind: str) -> None:
    rules, rope = CLASSES[kind], getattr(text_config(kind), "rope_parameters", None)
    if rope is None:
        return  # a class without rope
    rope = rope.get("full_attention", rope)  # some have one for each type of layer
    assert rope["rope_theta"] == rules.theta
    assert rope.get("partial_rotary_factor") == rules.partial_default
    assert rope["rope_type"] == rules.rope.get("rope_type", "default")
    assert not rules.rope or rope == rules.rope


@pytest.mark.parametrize("kind", CLASSES)
def test_windows(kind: str) -> None:
    declared, windows = fields(kind), CLASSES[kind].windows
    assert (windows is not None) == ("sliding_window" in declared)
    if windows is None:
        return
    assert windows.switch == ("use_sliding_window" in declared)
    assert windows.listed == ("layer_types" in declared)
    if windows.listed:
        stated = {"sliding_window": 5, "num_hidden_layers": LAYERS}
        stated |= {"use_sliding_window": True} if windows.switch else {}
        stated |= {"max_window_layers": FIRST} if "max_window_layers" in declared else {}
        kinds = text_config(kind, **stated).layer_types
        assert [name == "sliding_attention" for name in kinds] == [windows.limited(n, FIRST) for n in range(LAYERS)]
