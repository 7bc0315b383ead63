"""A bias on the attention output as a value that is the same for every token: in another head, or in wider heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Model, Norm
from gguf_tools.rewrites.output_bias import (
    OUTPUT_BIAS,
    OUTPUT_BIAS_BY_HEADS,
    applies,
    by_heads,
    by_width,
    cheapest,
    heads_are_cheaper,
    output_bias_at,
    wider,
)
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, PROMPTS, layer, random_model

EXACT, ROUNDED = 1e-24, 1e-12
PLAIN = replace(ATTENTION, qk_norm=None)


def mixers(model: Model) -> list[Attention]:
    return [one.mixer for one in model.spec.layers if isinstance(one.mixer, Attention)]


@settings(max_examples=25, deadline=None)
@given(
    biases=st.lists(st.sets(st.sampled_from("qkvo")), min_size=2, max_size=2),
    norm=st.sampled_from(("none", "one", "offset", "each", "gain")),
    kv_heads=st.sampled_from((1, 2, 4)),
    gated=st.booleans(),
    scale=st.booleans(),
    level=st.sampled_from((1.0, 32.0)),
    turned=st.sampled_from((None, 4, 8)),
    seed=st.integers(0, 1 << 20),
)
def test_another_head_changes_nothing(
    biases: list[set[str]],
    norm: str,
    kv_heads: int,
    gated: bool,
    scale: bool,
    level: float,
    turned: int | None,
    seed: int,
) -> None:
    mixer = replace(
        PLAIN,
        kv_heads=kv_heads,
        gated=gated,
        value_scale=scale,
        rope=Rope(1e4, turned) if turned else None,
        qk_norm=None if norm == "none" else Norm(1e-6, 0.5 if norm == "offset" else 0.0),
        norm_per_head=norm in ("each", "gain"),
        norm_gain=norm == "gain",
    )
    layers = [layer(replace(mixer, bias=frozenset(bias))) for bias in biases]
    before = random_model([*layers, layer(DELTA)], seed=seed)
    after = output_bias_at(level).apply(before)
    assert not applies(after.spec)
    # sigmoid(0) and powers of two are exact.
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= EXACT
    for old, new in zip(mixers(before), mixers(after), strict=True):
        has = "o" in old.bias
        assert (new.heads, new.kv_heads) == (old.heads + old.heads // kv_heads, kv_heads + 1)
        assert new.bias == old.bias - {"o"} | ({"v"} if has else set())
    assert after.layers[2].tensors == before.layers[2].tensors


@settings(max_examples=20, deadline=None)
@given(
    biases=st.lists(st.sets(st.sampled_from("qkvo")), min_size=2, max_size=2),
    norm=st.sampled_from((None, Norm(1e-6), Norm(1e-6, 0.5))),
    kv_heads=st.sampled_from((1, 2)),
    gated=st.booleans(),
    turned=st.sampled_from((None, 4, 8)),
    seed=st.integers(0, 1 << 20),
)
def test_wider_heads_change_nothing(
    biases: list[set[str]], norm: Norm | None, kv_heads: int, gated: bool, turned: int | None, seed: int
) -> None:
    mixer = replace(PLAIN, kv_heads=kv_heads, gated=gated, qk_norm=norm, rope=Rope(1e4, turned) if turned else None)
    layers = [layer(replace(mixer, bias=frozenset(bias))) for bias in biases]
    before = random_model([*layers, layer(DELTA)], seed=seed)
    after = by_width(before)
    assert not applies(after.spec)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= ROUNDED
    for old, new in zip(mixers(before), mixers(after), strict=True):
        assert (new.heads, new.kv_heads, new.head_dim) == (old.heads, old.kv_heads, 32)
        assert new.bias == old.bias - {"o"} | ({"v"} if "o" in old.bias else set())
        assert new.qk_norm == (norm and Norm(norm.eps))
    assert after.layers[2].tensors == before.layers[2].tensors


def test_what_is_added_is_zero_but_for_one_value() -> None:
    before = random_model([layer(replace(ATTENTION, bias=frozenset("qkvo"), gated=True))])
    for made, count, level in ((by_heads(before), 8, 1.0), (output_bias_at(32.0).apply(before), 8, 32.0)):
        old, new = before.layers[0].tensors, made.layers[0].tensors
        for role in ("attn.q", "attn.k", "attn.v", "attn.gate", "attn.q_bias", "attn.k_bias", "attn.gate_bias"):
            kept = old[role].shape[0]
            assert np.array_equal(new[role].array()[:kept], old[role].array())
            assert not np.any(new[role].array()[kept:])
        added = new["attn.v_bias"].array()[-count:]
        assert added.tolist() == [level, *[0.0] * 7]
        columns = new["attn.o"].array()
        assert np.array_equal(columns[:, :32], old["attn.o"].array())
        # The gate of the new head is 0.5.
        np.testing.assert_allclose(columns[:, 32], old["attn.o_bias"].array() * 2 / level, rtol=1e-7)
        assert not np.any(columns[:, 33:])


@pytest.mark.parametrize(("size", "wide"), [(1, 32), (31, 32), (32, 64), (33, 64), (64, 96)])
def test_heads_grow_to_the_next_block(size: int, wide: int) -> None:
    assert wider(size) == wide


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"head_dim": 16, "kv_heads": 1}, True),  # 16 more, or 16 more
        ({"head_dim": 24, "kv_heads": 1}, False),  # 24 more, or 8 more
        ({"head_dim": 24, "kv_heads": 2}, False),
        ({"head_dim": 24, "kv_heads": 4}, True),
        ({"head_dim": 24, "kv_heads": 1, "norm_per_head": True}, True),
        ({"head_dim": 24, "kv_heads": 1, "norm_gain": True}, True),
        ({"head_dim": 24, "kv_heads": 1, "value_scale": True}, True),
    ],
)
def test_the_cheaper_way(changes: dict[str, Any], heads: bool) -> None:
    mixer = replace(ATTENTION, rope=Rope(1e4, changes["head_dim"]), bias=frozenset("o"), **changes)
    before = random_model([layer(DELTA), layer(mixer)])
    assert heads_are_cheaper(before.spec) == heads
    after = cheapest(before)
    assert (mixers(after)[0].heads > 4, mixers(after)[0].head_dim > mixer.head_dim) == (heads, not heads)
    assert not heads_are_cheaper(random_model([layer(DELTA)]).spec)


@pytest.mark.parametrize("rewrite", [OUTPUT_BIAS, OUTPUT_BIAS_BY_HEADS])
def test_it_applies_to_a_bias_on_any_output(rewrite: Any) -> None:
    biased = layer(replace(ATTENTION, bias=frozenset("qo")))
    assert rewrite.applies(random_model([layer(), biased, layer(DELTA)]).spec)
    assert not rewrite.applies(random_model([layer(replace(ATTENTION, bias=frozenset("qkv"))), layer(DELTA)]).spec)


def test_what_each_way_is_tested_with() -> None:
    def suits(**changes: Any) -> list[bool]:
        spec = random_model([layer(replace(ATTENTION, bias=frozenset("o"), **changes))]).spec
        return [rewrite.suits(spec) for rewrite in (OUTPUT_BIAS, OUTPUT_BIAS_BY_HEADS, output_bias_at(2.0))]

    assert suits() == suits(rope=None) == suits(gated=True, norm_gain=True) == [True, True, True]
    more: list[dict[str, Any]] = [
        {"scale": 0.4},
        {"softcap": 8.0},
        {"norm_after_rope": True},
        {"rope": Rope(1e4, 8, backwards=True)},
    ]
    none: list[dict[str, Any]] = [{"value_dim": 4}, {"sinks": True}, {"norm_whole": True}]
    assert [suits(**changes) for changes in more] == [[False, True, True]] * len(more)
    assert [suits(**changes) for changes in none] == [[False, False, False]] * len(none)


@pytest.mark.parametrize("changes", [{"scale": 0.4}, {"softcap": 2.0}, {"norm_after_rope": True}])
def test_another_head_with_other_scores(changes: dict[str, Any]) -> None:
    before = random_model([layer(replace(ATTENTION, bias=frozenset("o"), **changes))])
    after = OUTPUT_BIAS_BY_HEADS.apply(before)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= EXACT
