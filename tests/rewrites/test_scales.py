"""Rewrites of scales, in layers with a state space too: the reference computes the same before and after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gguf_tools.model.spec import Attention, LayerSpec, Mamba2, Norm, ShortConv
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.scales import (
    FOLDED_ATTENTION_SCALE,
    FOLDED_EMBEDDING_SCALE,
    FOLDED_LOGIT_SCALE,
    FOLDED_MULTIPLIERS,
    FOLDED_RESIDUAL_SCALE,
    with_score_scale,
)
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, MLP, PROMPTS, layer, random_model

SPACE = Mamba2(heads=4, head_dim=6, groups=2, state=5, kernel=3, norm=Norm(1e-5), bias=frozenset({"in", "o"}))
ALONE = LayerSpec(SPACE, None, Norm(1e-6), None)
BESIDE = replace(layer(), beside=SPACE)
POST = Norm(1e-6)
FACTORS = (("attn.k", 0.3), ("ssm.step", 1.7), ("ssm.o_bias", 0.6), ("ffn.gate", 0.4))


def multiplied(spec: LayerSpec) -> LayerSpec:
    """The layer with multipliers of the roles that it has."""
    return replace(spec, multipliers=tuple(pair for pair in FACTORS if pair[0] in spec.roles(24)))


def scaled(spec: LayerSpec) -> LayerSpec:
    return replace(spec, residual_scale=0.22)


@pytest.mark.parametrize(
    ("rewrite", "layers"),
    [
        (FOLDED_MULTIPLIERS, [multiplied(BESIDE), multiplied(layer(DELTA, EXPERTS))]),
        (FOLDED_MULTIPLIERS, [multiplied(ALONE), multiplied(layer(ShortConv(3, bias=True), MLP))]),
        (FOLDED_MULTIPLIERS, [multiplied(replace(BESIDE, ffn_norm=None, parallel=True, residual_scale=0.5))]),
        (FOLDED_MULTIPLIERS, [multiplied(replace(BESIDE, mixer_post_norm=POST, ffn_post_norm=POST, mixer_norm=None))]),
        (FOLDED_RESIDUAL_SCALE, [scaled(ALONE), scaled(layer(SPACE, EXPERTS))]),
        (FOLDED_RESIDUAL_SCALE, [scaled(BESIDE), ALONE]),
    ],
)
def test_folding_changes_nothing(rewrite: Rewrite, layers: list[LayerSpec]) -> None:
    before = random_model(layers)
    assert rewrite.applies(before.spec)
    assert rewrite.suits(before.spec)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    # The products are rounded to float32.
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= 1e-12
    without = random_model([replace(spec, multipliers=(), residual_scale=1.0) for spec in layers])
    assert nmse(reference(without, PROMPTS), reference(before, PROMPTS)) > 1e-4


def test_a_short_convolutions_residual_scale_is_left_to_the_target() -> None:
    spec = random_model([scaled(layer(ShortConv(3)))]).spec
    assert FOLDED_RESIDUAL_SCALE.applies(spec)
    assert not FOLDED_RESIDUAL_SCALE.suits(spec)


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0])
def test_any_scale_but_one_is_folded(scale: float) -> None:
    assert FOLDED_EMBEDDING_SCALE.applies(random_model([layer()], embedding_scale=scale).spec)
    assert FOLDED_LOGIT_SCALE.applies(random_model([layer()], logit_scale=scale).spec)
    assert FOLDED_RESIDUAL_SCALE.applies(random_model([replace(layer(), residual_scale=scale)]).spec)
    assert FOLDED_ATTENTION_SCALE.applies(random_model([layer(replace(ATTENTION, scale=scale))]).spec)


def test_the_scale_of_an_architecture_is_stated_where_it_is_not_the_usual_one() -> None:
    model = random_model([layer(replace(ATTENTION, scale=0.4)), layer(DELTA), layer(replace(ATTENTION, scale=0.25))])
    for wanted, stated in ((0.25, 0.25), (8**-0.5, None)):
        made = with_score_scale(model, lambda mixer, wanted=wanted: wanted)  # type: ignore[misc]
        found = [one.mixer.scale for one in made.spec.layers if isinstance(one.mixer, Attention)]
        assert found[0] == stated
        assert [one.mixer.score_scale for one in made.spec.layers if isinstance(one.mixer, Attention)] == [wanted] * 2
        assert nmse(reference(made, PROMPTS), reference(model, PROMPTS)) <= 1e-12
    untouched = with_score_scale(model, lambda _: 0.25).layers[2]
    assert untouched.tensors == model.layers[2].tensors
    assert untouched.spec == model.layers[2].spec


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_keys_norm_is_left_where_it_has_no_offset(offset: float) -> None:
    mixer = replace(ATTENTION, scale=0.4, qk_norm=Norm(1e-6, offset))
    before = random_model([layer(mixer)])
    after = FOLDED_ATTENTION_SCALE.apply(before)
    old, new = (one.layers[0].tensors["attn.k_norm"] for one in (before, after))
    assert (new is old) == (offset == 0.0)
    np.testing.assert_allclose(new.array(), old.array() + offset, rtol=1e-6)


def test_what_a_layer_adds_and_nothing_else_is_scaled() -> None:
    before = random_model([scaled(layer()), scaled(BESIDE), scaled(layer(DELTA, EXPERTS)), scaled(ALONE)])
    after = FOLDED_RESIDUAL_SCALE.apply(before)
    for old, new in zip(before.layers, after.layers, strict=True):
        for role, tensor in old.tensors.items():
            factor = 0.22 if role.endswith((".o", ".o_bias", ".down")) else 1.0
            np.testing.assert_allclose(new.tensors[role].array(), factor * tensor.array(), rtol=1e-6)
