"""Limits on values that a target shares with others, at their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gguf_tools.model.rope import LinearScaling, Rope, YarnScaling, correction_range
from gguf_tools.model.spec import MLP, GatedMLP, LayerSpec, ModelSpec, MoE, Norm, Router
from gguf_tools.targets import limits
from tests.random_model import ATTENTION, DELTA, EXPERTS, HIDDEN, layer, random_model
from tests.targets.forms import SPACE

NORM = Norm(1e-6)
CENTRED = Norm(1e-6, centred=True)


def spec(*layers: LayerSpec, **outside: Any) -> ModelSpec:
    return random_model(layers, **outside).spec


def routed(experts: int = 4, **changes: Any) -> LayerSpec:
    """A layer of experts with a router that is changed."""
    return layer(feed_forward=MoE(experts, 12, replace(Router(top_k=2), **changes)))


def test_values_that_differ_are_told_once_each() -> None:
    assert limits.same([], "things") == limits.same([1], "things") == limits.same([1, 1, 1], "things") == []
    assert limits.same([1, 2, 1], "things") == ["layers that differ in things (1, 2)"]
    scaled = Rope(5.0, 4, scaling=LinearScaling(2.0))
    assert limits.same([Rope(1e4, 8), scaled], "rope") == [
        "layers that differ in rope (base 10000, 8 dimensions, base 5, 4 dimensions, LinearScaling)"
    ]


OTHER = Norm(1e-3)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (spec(layer(), layer(DELTA), output_norm=NORM, embedding_norm=NORM), 0),
        (spec(layer(), output_norm=OTHER), 1),
        (spec(layer(), embedding_norm=OTHER), 1),
        (spec(layer(), replace(layer(), mixer_norm=OTHER)), 1),
        (spec(layer(), replace(layer(), ffn_post_norm=OTHER)), 1),
        (spec(layer(replace(ATTENTION, qk_norm=OTHER))), 1),
        (spec(layer(replace(DELTA, norm=OTHER))), 1),
        (spec(layer(replace(DELTA, l2_eps=1e-3))), 1),
        (spec(layer(replace(SPACE, norm=OTHER))), 1),
        (spec(replace(layer(), beside=replace(SPACE, norm=OTHER))), 1),
    ],
)
def test_one_epsilon(made: ModelSpec, wanted: int) -> None:
    assert len(limits.norm_limits(made)) == wanted


def test_layer_norms_are_all_norms() -> None:
    mixer = replace(ATTENTION, qk_norm=None)
    centred = LayerSpec(mixer, GatedMLP(20), CENTRED, CENTRED)
    rms = ["RMS norms (which do not subtract the mean)"]
    assert limits.layer_norm_limits(spec(centred, output_norm=CENTRED)) == []
    assert limits.layer_norm_limits(spec(centred, output_norm=NORM)) == rms
    assert limits.layer_norm_limits(spec(centred, output_norm=CENTRED, embedding_norm=NORM)) == rms
    assert limits.layer_norm_limits(spec(replace(centred, ffn_norm=NORM), output_norm=CENTRED)) == rms
    assert len(limits.layer_norm_limits(spec(centred, output_norm=OTHER))) == 2


PLAIN = replace(ATTENTION, qk_norm=None)


@pytest.mark.parametrize(
    ("mixers", "needs", "wanted"),
    [
        ([ATTENTION, ATTENTION, DELTA], {}, []),
        ([PLAIN], {}, []),
        ([ATTENTION, PLAIN, PLAIN], {"qk_norm": True}, ["attention without q/k norm"]),
        ([ATTENTION, DELTA], {"qk_norm": True}, []),
        ([PLAIN], {"gate": True}, ["attention without a gate"]),
        ([replace(PLAIN, gated=True)], {"gate": True}, []),
        ([ATTENTION, replace(ATTENTION, heads=2)], {}, ["head counts and sizes"]),
        ([ATTENTION, replace(ATTENTION, kv_heads=1)], {}, ["head counts and sizes"]),
        ([ATTENTION, replace(ATTENTION, value_dim=4)], {}, ["head counts and sizes"]),
        ([ATTENTION, replace(ATTENTION, value_dim=8)], {}, []),
        ([ATTENTION, replace(ATTENTION, rope=None)], {}, []),
        ([ATTENTION, replace(ATTENTION, rope=Rope(5.0, 8))], {}, ["rope parameters"]),
    ],
)
def test_attention_is_alike(mixers: Sequence[Any], needs: dict[str, bool], wanted: list[str]) -> None:
    found = limits.attention_limits(spec(*map(layer, mixers)), **needs)
    assert len(found) == len(wanted)
    assert all(words in said for words, said in zip(wanted, found, strict=True))


@pytest.mark.parametrize(("width", "refused"), [(1, True), (2, False), (None, False)])
def test_values_of_one_dimension(width: int | None, refused: bool) -> None:
    found = limits.graph_limits(spec(layer(DELTA), layer(), layer(replace(ATTENTION, value_dim=width))))
    assert found == (["attention with values of one dimension per head"] if refused else [])


def test_heads_as_wide_as_the_model() -> None:
    square = layer(replace(ATTENTION, heads=3, kv_heads=1))
    assert limits.square_limits(spec(square, layer(DELTA))) == []
    assert limits.square_limits(spec(square, layer(), layer())) == [
        f"4 heads of 8 dimensions with a hidden size of {HIDDEN}"
    ]


@pytest.mark.parametrize(("original", "width"), [(6, 0), (64, 2), (10**12, -2)])
def test_a_correction_range_that_ends_before_it_starts(original: int, width: int) -> None:
    yarn = YarnScaling(factor=2.0, original_context=original)
    mixer = replace(ATTENTION, rope=Rope(1e4, 8, scaling=yarn))
    assert mixer.rope
    low, high = correction_range(mixer.rope, yarn)
    assert high - low == width
    found = limits.yarn_limits(mixer)
    assert found == ([] if width >= 0 else [f"YaRN with a correction range from pair {low:g} back to {high:g}"])
    assert limits.attention_limits(spec(layer(mixer), layer(mixer))) == found


def test_feed_forwards_of_one_width() -> None:
    wide, narrow = layer(feed_forward=GatedMLP(20)), layer(feed_forward=MLP(7, "gelu"))
    assert limits.mlp_limits(spec(wide, layer(feed_forward=EXPERTS), layer(feed_forward=MLP(20, "gelu")))) == []
    assert limits.mlp_limits(spec(wide, narrow)) == ["layers that differ in feed-forward width (20, 7)"]


NOT, DONE = (
    "router weights that are not renormalised (norm_topk_prob false)",
    "router weights renormalised (norm_topk_prob true)",
)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 3, 4])
@pytest.mark.parametrize("normalised", [True, False])
def test_renormalised_weights(score: Any, top_k: int, normalised: bool) -> None:
    """All weights of a softmax sum to 1; fewer, and those of sigmoids, to another number."""
    made = spec(routed(score=score, top_k=top_k, normalised=normalised), layer())
    same = score == "softmax" and top_k == 4
    assert limits.moe_limits(made, normalised=normalised) == []
    assert limits.moe_limits(made, normalised=not normalised) == ([] if same else [DONE if normalised else NOT])
    assert limits.moe_limits(made) == limits.moe_limits(made, normalised=True)


def test_experts_that_differ() -> None:
    assert limits.moe_limits(spec(layer(), routed(), routed())) == []
    assert limits.moe_limits(spec(routed(), routed(experts=5))) == [
        "layers that differ in the number and width of experts ((4, 12), (5, 12))"
    ]
    assert len(limits.moe_limits(spec(routed(), routed(scale=2.0)))) == 1


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("mmm", []),
        ("dmm", []),
        ("ddm", []),
        ("ddd", ["a model without experts"]),
        ("dmd", ["dense layers after layers with experts"]),
        ("mdm", ["dense layers after layers with experts"]),
    ],
)
def test_dense_layers_come_first(pattern: str, wanted: list[str]) -> None:
    assert limits.leading_dense_limits(spec(*(routed() if kind == "m" else layer() for kind in pattern))) == wanted
