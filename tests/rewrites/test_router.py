"""Rewrites of routers: the reference computes the same before and after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.model.spec import Layer, LayerSpec, Model, MoE, SharedExpert
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.router import FOLDED_ROUTER_SCALE, SINGLE_EXPERT, UNIFORM_ROUTER_BIAS, with_softmax_and_bias
from gguf_tools.tensors.base import Filled, InMemory
from tests.oracle import nmse, reference
from tests.random_model import EXPERTS, PROMPTS, layer, random_model, with_layer


@pytest.mark.parametrize("shared", [None, SharedExpert(8, True), SharedExpert(8, False)])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_router_scale_moves_into_the_experts(shared: SharedExpert | None, normalised: bool) -> None:
    router = replace(EXPERTS.router, scale=2.5, normalised=normalised, score="sigmoid", score_bias=True)
    before = random_model([layer(feed_forward=replace(EXPERTS, router=router, shared=shared)), layer()])
    assert FOLDED_ROUTER_SCALE.applies(before.spec)
    assert FOLDED_ROUTER_SCALE.suits(before.spec)
    after = FOLDED_ROUTER_SCALE.apply(before)
    assert not FOLDED_ROUTER_SCALE.applies(after.spec)
    # The products are rounded to float32.
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= 1e-13
    assert all(after.layers[1].tensors[role] is tensor for role, tensor in before.layers[1].tensors.items())


def test_without_the_scale_the_logits_are_others() -> None:
    scaled = replace(EXPERTS, router=replace(EXPERTS.router, scale=2.5))
    plain, other = random_model([layer(feed_forward=EXPERTS)]), random_model([layer(feed_forward=scaled)])
    assert nmse(reference(other, PROMPTS), reference(plain, PROMPTS)) > 1e-3
    folded = FOLDED_ROUTER_SCALE.apply(other).layers[0].tensors["moe.down"].array()
    np.testing.assert_allclose(folded, 2.5 * plain.layers[0].tensors["moe.down"].array(), rtol=1e-6)


def routed(**changes: Any) -> LayerSpec:
    """A layer of experts with a router that is changed."""
    return layer(feed_forward=replace(EXPERTS, router=replace(EXPERTS.router, **changes)))


def uniform(model: Model) -> Model:
    """The model with the same bias for all experts of a layer."""
    return model.with_layers(
        Layer(one.spec, {**one.tensors, "moe.router_bias": Filled((EXPERTS.experts,), 0.5)})
        if "moe.router_bias" in one.tensors
        else one
        for one in model.layers
    )


MIXED: dict[str, tuple[Rewrite, Model, list[int]]] = {
    "scale": (FOLDED_ROUTER_SCALE, random_model([layer(), routed(scale=2.0), routed(), routed(scale=0.5)]), [1, 3]),
    "bias": (UNIFORM_ROUTER_BIAS, uniform(random_model([routed(selection_bias=True), layer(), routed()])), [0]),
    "one expert": (
        SINGLE_EXPERT,
        random_model([layer(), routed(top_k=1, score="sigmoid", selection_bias=True), routed(top_k=1)]),
        [1, 2],
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_layers_without_the_feature_are_left(name: str) -> None:
    rewrite, before, changed = MIXED[name]
    assert rewrite.applies(before.spec)
    assert rewrite.holds(before)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= 1e-13
    assert [n for n, one in enumerate(after.layers) if one.spec != before.spec.layers[n]] == changed
    for n in {*range(len(after.layers))} - {*changed}:
        assert after.layers[n].tensors == before.layers[n].tensors


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([routed(selection_bias=True)], True),
        ([layer(), routed(selection_bias=True)], True),
        ([routed(), layer()], False),
        ([routed(score_bias=True)], False),
    ],
)
def test_a_bias_of_the_logits_is_looked_at(layers: list[LayerSpec], wanted: bool) -> None:
    assert UNIFORM_ROUTER_BIAS.applies(random_model(layers).spec) == wanted


@pytest.mark.parametrize(("top_k", "holds"), [(3, False), (4, True)])
def test_a_bias_has_no_effect_where_all_experts_are_selected(top_k: int, holds: bool) -> None:
    model = random_model([layer(), routed(), routed(top_k=top_k, selection_bias=True)])
    assert UNIFORM_ROUTER_BIAS.holds(model) == holds
    after = UNIFORM_ROUTER_BIAS.apply(model)
    assert (nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= 1e-13) == holds


def test_a_bias_that_differs_at_one_expert_has_an_effect() -> None:
    model = random_model([routed(selection_bias=True)])
    for n in range(EXPERTS.experts):
        bias = np.full(EXPERTS.experts, 0.5, np.float32)
        bias[n] = 0.75
        assert not UNIFORM_ROUTER_BIAS.holds(with_layer(model, 0, {"moe.router_bias": InMemory(bias)}))
    assert UNIFORM_ROUTER_BIAS.holds(uniform(model))


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([routed(top_k=1, score="sigmoid", selection_bias=True)], True),
        ([routed(top_k=1, score="sigmoid"), routed(top_k=1, selection_bias=True)], True),
        ([routed(top_k=1, score="sigmoid", selection_bias=True), routed(top_k=2)], False),
        ([routed(top_k=1, score="sigmoid", selection_bias=True, normalised=False)], False),
        ([routed(top_k=2, score="sigmoid", selection_bias=True)], False),
        ([routed(top_k=1, score="softmax", selection_bias=True)], False),
        ([routed(top_k=1, score="sigmoid")], False),
        ([layer()], False),
    ],
)
def test_one_expert_of_a_sigmoid_router_with_a_bias(layers: list[LayerSpec], wanted: bool) -> None:
    assert SINGLE_EXPERT.applies(random_model(layers).spec) == wanted


def test_a_router_without_a_bias_gets_zeros() -> None:
    before = random_model([routed(score="sigmoid"), layer()]).layers
    after = [with_softmax_and_bias(one) for one in before]
    assert after[1] == before[1]
    ffn, bias = after[0].spec.feed_forward, after[0].tensors["moe.router_bias"]
    assert isinstance(ffn, MoE)
    assert (ffn.router.score, ffn.router.selection_bias) == ("softmax", True)
    assert np.array_equal(bias.array(), np.zeros(EXPERTS.experts))
