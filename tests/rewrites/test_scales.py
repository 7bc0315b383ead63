"""Rewrites of scales in layers with a state space: the reference computes the same before and after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gguf_tools.model.spec import LayerSpec, Mamba2, Norm, ShortConv
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.scales import FOLDED_MULTIPLIERS, FOLDED_RESIDUAL_SCALE
from tests.oracle import nmse, reference
from tests.random_model import DELTA, EXPERTS, MLP, PROMPTS, layer, random_model

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
