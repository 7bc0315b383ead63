"""A Model is its layers: what it refuses, and how layers are replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_tools.errors import CheckpointError
from gguf_tools.tensors.base import Filled
from tests.random_model import ATTENTION, DELTA, EXPERTS, HIDDEN, VOCAB, layer, named, random_model

MODEL = random_model([layer(), layer(DELTA, EXPERTS)])


def test_a_layer_is_its_spec_and_its_tensors() -> None:
    for spec, one in zip(MODEL.spec.layers, MODEL.layers, strict=True):
        assert one.spec is spec
        assert {role: tensor.shape for role, tensor in one.tensors.items()} == spec.roles(HIDDEN)
    assert MODEL.parameters == sum(tensor.size for tensor in named(MODEL).values())


def test_layers_in_another_order() -> None:
    first, second = MODEL.layers
    other = MODEL.with_layers([second, first, second])
    assert other.spec == replace(MODEL.spec, layers=(second.spec, first.spec, second.spec))
    assert other.spec.pattern == "DaD"
    assert [one.tensors for one in other.layers] == [second.tensors, first.tensors, second.tensors]
    assert other.tensors is MODEL.tensors


def test_a_missing_tensor_is_named_with_its_layer() -> None:
    first, second = MODEL.layers
    less = {role: tensor for role, tensor in second.tensors.items() if role != "delta.decay"}
    with pytest.raises(CheckpointError, match=r"lacks a tensor for layers\.1\.delta\.decay, shape \(4,\)"):
        MODEL.with_layers([first, replace(second, tensors=less)])


def test_a_wrong_shape_is_named_with_its_layer() -> None:
    first, second = MODEL.layers
    wrong = replace(first, tensors={**first.tensors, "attn.q": Filled((3, HIDDEN))})
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.attn\.q has shape \(3, 24\); expected \(32, 24\) for layers\.0\.attn\.q"
    ):
        MODEL.with_layers([wrong, second])
    with pytest.raises(CheckpointError, match=r"lacks a tensor for output, shape \(40, 24\)"):
        replace(MODEL, tensors={role: tensor for role, tensor in MODEL.tensors.items() if role != "output"})


def test_tensors_that_no_role_takes_are_all_named() -> None:
    extra = {"attn.gate": Filled((32, HIDDEN)), "attn.sinks": Filled((ATTENTION.heads,))}
    layers = tuple({**tensors, **extra} for tensors in MODEL.layer_tensors)
    with pytest.raises(CheckpointError) as caught:
        replace(MODEL, tensors={**MODEL.tensors, "position": Filled((VOCAB,))}, layer_tensors=layers)
    listed = ["position", *(f"layers.{n}.{role}" for n in (0, 1) for role in extra)]
    assert str(caught.value).endswith("does not use: " + ", ".join(listed))


def test_as_many_tensors_as_layers() -> None:
    with pytest.raises(ValueError, match="zip"):
        replace(MODEL, layer_tensors=MODEL.layer_tensors[:1])
