"""Rope: pair orders, directions, parts of a head, and norms on either side of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.model.rope import FactorScaling, LinearScaling, Llama3Scaling, Rope, Scaling, YarnScaling, frequencies
from gguf_tools.model.spec import Attention, LayerSpec, Model, Norm
from gguf_tools.rewrites.rope_pairs import (
    FORWARD_ROPE,
    HALF_PAIRS,
    INTERLEAVED_PAIRS,
    NORM_BEFORE_ROPE,
    WHOLE_ROPE,
    pair_order,
    whole_head,
)
from gguf_tools.tensors.base import InMemory
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, PROMPTS, layer, random_model, with_layer

EXACT = 1e-24
TURNED = Rope(1e4, 8, "interleaved")
YARN = YarnScaling(factor=4.0, original_context=16)
SCALINGS: list[Scaling | None] = [None, LinearScaling(2.0), Llama3Scaling(8.0, 1.0, 4.0, 16)]


def turned(rope: Rope | None, **more: Any) -> LayerSpec:
    return layer(replace(ATTENTION, rope=rope, **more))


def late(**changes: Any) -> LayerSpec:
    """A layer whose q/k norm follows its rope."""
    return layer(replace(ATTENTION, norm_after_rope=True, **changes))


@settings(max_examples=20, deadline=None)
@given(
    dims=st.sampled_from((2, 4, 6, 8)),
    back=st.booleans(),
    bias=st.booleans(),
    norm=st.sampled_from(("none", "one", "each", "whole", "biased")),
    scaling=st.sampled_from([*SCALINGS, YARN]),
    seed=st.integers(0, 1 << 20),
)
def test_pairs_change_places_and_back(
    dims: int, back: bool, bias: bool, norm: str, scaling: Scaling | None, seed: int
) -> None:
    mixer = replace(
        ATTENTION,
        rope=Rope(1e4, dims, "half", scaling, back),
        bias=frozenset("qk" if bias else ""),
        qk_norm=None if norm == "none" else Norm(1e-6, bias=norm == "biased"),
        norm_per_head=norm == "each",
        norm_whole=norm == "whole",
    )
    before = random_model([layer(mixer), layer(DELTA)], seed=seed)
    after = INTERLEAVED_PAIRS.apply(before)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= EXACT
    again = HALF_PAIRS.apply(after)
    assert again.spec == before.spec
    for old, new in zip(before.layers, again.layers, strict=True):
        assert all(np.array_equal(new.tensors[role].array(), tensor.array()) for role, tensor in old.tensors.items())


@pytest.mark.parametrize(
    ("dims", "size", "pairs", "order"),
    [
        (8, 8, "interleaved", [0, 4, 1, 5, 2, 6, 3, 7]),
        (8, 8, "half", [0, 2, 4, 6, 1, 3, 5, 7]),
        (4, 6, "interleaved", [0, 2, 1, 3, 4, 5]),
        (4, 6, "half", [0, 2, 1, 3, 4, 5]),
        (6, 7, "half", [0, 2, 4, 1, 3, 5, 6]),
        (2, 3, "half", [0, 1, 2]),
    ],
)
def test_orders(dims: int, size: int, pairs: Any, order: list[int]) -> None:
    assert pair_order(dims, size, pairs) == order


@pytest.mark.parametrize("scaling", [*SCALINGS, FactorScaling((2.0, 3.0))])
def test_pairs_that_do_not_turn_get_no_frequency(scaling: Scaling | None) -> None:
    rope = replace(TURNED, dims=4, scaling=scaling)
    whole = whole_head(rope, 10)
    assert (whole.dims, whole.pairs, whole.theta) == (10, "interleaved", rope.theta)
    found, wanted = frequencies(whole)[0], frequencies(rope)[0]
    np.testing.assert_allclose(found[:2], wanted, rtol=1e-14)
    assert isinstance(whole.scaling, FactorScaling)
    assert whole.scaling.factors[2:] == (1e30, 1e30, 1e30)
    model = random_model([turned(replace(rope, scaling=scaling))])
    after = WHOLE_ROPE.apply(model)
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= EXACT


@pytest.mark.parametrize(
    ("layers", "applies", "holds"),
    [
        ([turned(replace(TURNED, dims=6))], True, True),
        ([turned(replace(TURNED, dims=6)), turned(None), layer(DELTA)], True, True),
        ([turned(replace(TURNED, dims=6)), layer()], True, False),
        ([turned(Rope(1e4, 6))], True, False),
        ([turned(replace(TURNED, dims=6, scaling=YARN))], False, True),
        ([turned(TURNED)], False, True),
        ([layer(DELTA)], False, True),
    ],
)
def test_a_part_of_a_head(layers: list[LayerSpec], applies: bool, holds: bool) -> None:
    model = random_model(layers)
    assert (WHOLE_ROPE.applies(model.spec), WHOLE_ROPE.holds(model)) == (applies, holds)


@pytest.mark.parametrize(("pairs", "negated"), [("half", [3, 4, 5]), ("interleaved", [1, 3, 5])])
def test_the_second_of_each_pair_is_negated(pairs: Any, negated: list[int]) -> None:
    mixer = replace(ATTENTION, rope=Rope(1e4, 6, pairs, backwards=True), bias=frozenset("qkv"))
    before = random_model([layer(mixer)])
    after = FORWARD_ROPE.apply(before)
    old, new = before.layers[0].tensors, after.layers[0].tensors
    for role in ("attn.q", "attn.k", "attn.q_bias", "attn.k_bias"):
        rows = old[role].array().reshape(-1, 8, *old[role].shape[1:]).copy()
        rows[:, negated] *= -1
        assert np.array_equal(new[role].array(), rows.reshape(old[role].shape))
    assert all(new[role] is old[role] for role in old if role not in ("attn.q", "attn.k", "attn.q_bias", "attn.k_bias"))


def weighted(model: Model, n: int, role: str, values: list[float]) -> Model:
    """The model with these norm weights in layer n."""
    shape = model.layers[n].tensors[role].shape
    return with_layer(model, n, {role: InMemory(np.broadcast_to(np.asarray(values, np.float32), shape).copy())})


EVEN: dict[str, list[float]] = {
    "half": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 7.0, 8.0],
    "interleaved": [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 7.0, 8.0],
}


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("per_head", [False, True])
def test_weights_that_are_equal_in_each_pair_commute(pairs: Any, per_head: bool) -> None:
    spec = late(rope=Rope(1e4, 6, pairs), norm_per_head=per_head)
    model = random_model([layer(), layer(DELTA), spec])
    for role in ("attn.q_norm", "attn.k_norm"):
        model = weighted(model, 2, role, EVEN[pairs])
    assert NORM_BEFORE_ROPE.holds(model)
    after = NORM_BEFORE_ROPE.apply(model)
    assert not NORM_BEFORE_ROPE.applies(after.spec)
    assert after.spec.layers[:2] == model.spec.layers[:2]
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= EXACT
    for role in ("attn.q_norm", "attn.k_norm"):
        for n in range(6):
            uneven = list(EVEN[pairs])
            uneven[n] += 0.5
            assert not NORM_BEFORE_ROPE.holds(weighted(model, 2, role, uneven))
        for n in (6, 7):  # not turned
            other = list(EVEN[pairs])
            other[n] += 0.5
            assert NORM_BEFORE_ROPE.holds(weighted(model, 2, role, other))


def test_one_head_that_differs_does_not_commute() -> None:
    model = random_model([late(rope=Rope(1e4, 8), norm_per_head=True)])
    even = np.tile(np.asarray([1.0, 2.0, 3.0, 4.0] * 2, np.float32), (4, 1))
    model = with_layer(model, 0, {"attn.q_norm": InMemory(even), "attn.k_norm": InMemory(even[:2])})
    assert NORM_BEFORE_ROPE.holds(model)
    uneven = even.copy()
    uneven[3, 0] += 1
    assert not NORM_BEFORE_ROPE.holds(with_layer(model, 0, {"attn.q_norm": InMemory(uneven)}))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (late(), True),
        (late(rope=None), True),
        (late(qk_norm=Norm(1e-6, weighted=False)), True),
        (late(rope=Rope(1e4, 8, scaling=LinearScaling(2.0))), True),
        (late(rope=Rope(1e4, 8, scaling=YARN)), False),
        (late(rope=Rope(1e4, 8, scaling=replace(YARN, attention_factor=1.0))), True),
        (layer(), False),
    ],
)
def test_a_norm_that_follows_a_rotation_alone(spec: LayerSpec, wanted: bool) -> None:
    assert NORM_BEFORE_ROPE.applies(random_model([layer(DELTA), spec]).spec) == wanted


def test_without_rope_or_weights_any_norm_commutes() -> None:
    model = random_model([late(rope=None), late(qk_norm=Norm(1e-6, weighted=False)), layer()])
    assert NORM_BEFORE_ROPE.holds(model)
    after = NORM_BEFORE_ROPE.apply(model)
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= EXACT
    assert [one.mixer.norm_after_rope for one in after.spec.layers if isinstance(one.mixer, Attention)] == [False] * 3


def test_weights_of_layers_that_stay_do_not_matter() -> None:
    """Their norm is before rope, or stays behind it for another reason."""
    model = random_model([layer(), late(norm_gain=True), late(rope=None)])
    assert NORM_BEFORE_ROPE.holds(model)
    assert NORM_BEFORE_ROPE.apply(model).spec.layers[:2] == model.spec.layers[:2]
