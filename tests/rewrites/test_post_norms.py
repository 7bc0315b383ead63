"""Norms after mixer and feed-forward that change nothing: for which models they are, and the numbers that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.model.spec import MLP, GatedMLP, LayerSpec, Norm
from gguf_tools.rewrites.output_bias import output_bias_at
from gguf_tools.rewrites.post_norms import LEVEL, POST_NORM_IDENTITY
from gguf_tools.tensors.base import InMemory
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, HIDDEN, PROMPTS, VOCAB, filled, layer, random_model

NORM = Norm(1e-6)
BARE = layer(feed_forward=GatedMLP(20, activation="gelu_tanh"))
BIASED = replace(ATTENTION, bias=frozenset("qo"), gated=True)
WIDE = HIDDEN + 32


@pytest.mark.parametrize(
    ("layers", "outside", "wanted"),
    [
        ([BARE], {}, True),
        ([BARE, layer(feed_forward=GatedMLP(12, activation="gelu")), layer(feed_forward=GatedMLP(12))], {}, True),
        ([BARE], {"logit_softcap": None}, False),
        ([BARE], {"output_norm": Norm(1e-5)}, False),
        ([replace(BARE, mixer_norm=Norm(1e-5))], {}, False),
        ([replace(BARE, ffn_norm=Norm(1e-5))], {}, False),
        ([BARE, replace(BARE, mixer_norm=None)], {}, False),
        ([BARE, replace(BARE, ffn_norm=None)], {}, False),
        ([replace(BARE, mixer_post_norm=NORM)], {}, False),
        ([replace(BARE, ffn_post_norm=NORM)], {}, False),
        ([replace(BARE, mixer_post_norm=NORM, ffn_post_norm=NORM)], {}, False),
        ([layer(feed_forward=GatedMLP(20, activation="relu"))], {}, False),
        ([layer(feed_forward=GatedMLP(20, frozenset({"up"}), "gelu"))], {}, False),
        ([layer(feed_forward=MLP(20, "gelu"))], {}, False),
        ([BARE, layer(feed_forward=EXPERTS)], {}, False),
        ([BARE, replace(BARE, mixer=DELTA)], {}, False),
    ],
)
def test_which_models_get_them(layers: Sequence[LayerSpec], outside: dict[str, Any], wanted: bool) -> None:
    spec = random_model(layers, **{"logit_softcap": 15.0, **outside}).spec
    assert POST_NORM_IDENTITY.applies(spec) == wanted


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", [Norm(1e-6), Norm(1e-6, 0.5), Norm(1e-6, weighted=False)])
def test_the_numbers(tied: bool, norm: Norm) -> None:
    """2^10 on the stream and in the gates, 2^20 for the constants, and 32 channels more."""
    spec = replace(BARE, mixer=BIASED, mixer_norm=norm, ffn_norm=norm)
    before = random_model([spec, spec], tied=tied, logit_softcap=15.0, embedding_scale=3.0, output_norm=norm)
    after = POST_NORM_IDENTITY.apply(before)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= 1e-11
    share = (HIDDEN / WIDE) ** 0.5
    assert (after.spec.hidden, after.spec.vocab_size, after.spec.tied) == (WIDE, VOCAB, tied)
    assert after.spec.embedding_scale == pytest.approx(3.0 * 1024 / share, rel=1e-12)
    plain = Norm(norm.eps)
    assert after.spec.output_norm == plain
    made, old = after.layers[1], before.layers[1].tensors
    ffn = GatedMLP(20 + 2 * WIDE, activation="gelu_tanh")
    posts: dict[str, Any] = {"mixer_post_norm": plain, "ffn_post_norm": plain}
    assert made.spec == replace(spec, feed_forward=ffn, mixer_norm=plain, ffn_norm=plain, **posts)
    new = {role: tensor.array().astype(np.float64) for role, tensor in made.tensors.items()}
    assert np.abs(new["ffn.gate"][20:]).max() == 1024
    assert np.abs(new["ffn.up"][20:]).max() == 2.0**-10
    assert np.array_equal(new["ffn.gate"][20 : 20 + WIDE], 1024 * np.eye(WIDE))
    assert np.array_equal(new["ffn.gate"][20 + WIDE :], -1024 * np.eye(WIDE))
    # 2^20 is shared among the 16 channels that 24 has in a power of two, but no number is beyond 2^15.
    row = new["ffn.down"][HIDDEN]
    assert set(row[:20]) == {0.0}
    assert set(row[20:]) == {2.0**15}
    assert not np.any(new["ffn.down"][HIDDEN + 1 :])
    assert new["attn.o_bias"][HIDDEN:].tolist() == [2.0**20, *[0.0] * 31]
    assert np.array_equal(new["attn.o_bias"][:HIDDEN], old["attn.o_bias"].array())
    np.testing.assert_allclose(new["mixer_post_norm"], [2.0**30 / HIDDEN**0.5] * HIDDEN + [0.0] * 32, rtol=1e-7)
    np.testing.assert_allclose(new["ffn_post_norm"], [2.0**25 * HIDDEN**0.5] * HIDDEN + [0.0] * 32, rtol=1e-7)
    np.testing.assert_allclose(new["ffn_norm"], share, rtol=1e-7)
    weights = old["mixer_norm"].array() + norm.offset if norm.weighted else np.ones(HIDDEN)
    np.testing.assert_allclose(new["mixer_norm"][:HIDDEN], weights * share, rtol=1e-6)
    assert not np.any(new["mixer_norm"][HIDDEN:])
    for role in ("attn.q", "attn.k", "attn.v", "attn.gate"):
        assert new[role].shape == (old[role].shape[0], WIDE)
        assert np.array_equal(new[role][:, :HIDDEN], old[role].array())
        assert not np.any(new[role][:, HIDDEN:])


def test_the_channel_that_stands_for_the_epsilon() -> None:
    before = random_model([BARE], logit_softcap=15.0)
    after = POST_NORM_IDENTITY.apply(before)
    embedding = after.tensors["embedding"].array().astype(np.float64) * after.spec.embedding_scale
    np.testing.assert_allclose(embedding[:, HIDDEN], (WIDE * 1e-6 * (1024**2 - 1)) ** 0.5, rtol=2e-7)
    assert not np.any(embedding[:, HIDDEN + 1 :])
    assert not np.any(after.tensors["output"].array()[:, HIDDEN:])


def test_the_mixers_constant_is_made_of_numbers_that_float16_has() -> None:
    """2^20 is 2^15 in the output projection times a value of 2^5."""
    after = output_bias_at(LEVEL).apply(POST_NORM_IDENTITY.apply(random_model([BARE], logit_softcap=15.0)))
    tensors = after.layers[0].tensors
    assert set(tensors["attn.v_bias"].array()) == {0.0, 2.0**5}
    assert tensors["attn.o"].array()[HIDDEN].max() == 2.0**15


def test_a_wide_model_shares_the_constant_among_its_channels() -> None:
    """With 1024 channels and more each adds less than 2^15."""
    hidden = 64
    spec = replace(random_model([BARE], logit_softcap=15.0).spec, hidden=hidden)
    rng = np.random.default_rng(0)
    before = filled(spec, lambda role, shape: InMemory(rng.standard_normal(shape).astype(np.float32)))
    down = POST_NORM_IDENTITY.apply(before).layers[0].tensors["ffn.down"].array()
    assert set(down[hidden, 20:]) == {2.0**14}
