"""Rewrites of routers: the reference computes the same before and after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gguf_tools.model.spec import SharedExpert
from gguf_tools.rewrites.router import FOLDED_ROUTER_SCALE
from tests.oracle import nmse, reference
from tests.random_model import EXPERTS, PROMPTS, layer, random_model


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
