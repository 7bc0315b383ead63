"""The torch reference by itself: what no checkpoint of transformers has is held against what it amounts to.

Whole models against transformers are in tests/targets/test_core_conformance.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gguf_tools.model.rope import LinearScaling, Llama3Scaling, Rope, Scaling, YarnScaling, frequencies
from gguf_tools.model.spec import Model, Norm, Router
from gguf_tools.reference import Reference
from gguf_tools.reference.feed_forward import route
from gguf_tools.reference.mixers import rotate
from gguf_tools.reference.norm import normed
from gguf_tools.tensors.base import InMemory
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, PROMPTS, layer, random_model, with_layer
from tests.tiny_models import dense, in_float64

EXACT = 1e-24


Array = np.ndarray[Any, Any]


def with_values(model: Model, **changed: Array) -> Model:
    """The model with other numbers in some roles outside the layers."""
    return replace(model, tensors={**model.tensors, **{role: stored(values) for role, values in changed.items()}})


def stored(values: Array) -> InMemory:
    return InMemory(np.asarray(values, np.float32))


def values(model: Model, role: str) -> Array:
    """The numbers of a role outside the layers, or of one in the first layer."""
    return (model.tensors.get(role) or model.layers[0].tensors[role]).array()


# Rope


factors = st.floats(1.0, 16.0)
originals = st.integers(8, 4096)
thetas = st.floats(100.0, 1e7)
dims = st.sampled_from((2, 4, 8, 30, 64))


def theirs(kind: str, theta: float, width: int, **parameters: Any) -> tuple[np.ndarray[Any, Any], float]:
    """transformers' frequencies and factor on cosine and sine, in float64."""
    with in_float64():
        config = dense(head_dim=width, rope_parameters={"rope_type": kind, "rope_theta": theta, **parameters})
        inverse, magnitude = ROPE_INIT_FUNCTIONS[kind](config)
        return inverse.numpy(), float(magnitude)


def check(rope: Rope, expected: tuple[np.ndarray[Any, Any], float]) -> None:
    inverse, magnitude = frequencies(rope)
    np.testing.assert_allclose(inverse, expected[0], rtol=1e-12)
    assert magnitude == pytest.approx(expected[1], rel=1e-14)


@settings(max_examples=60)
@given(thetas, dims, factors, originals, st.floats(2.0, 64.0), st.floats(0.1, 1.9), st.booleans(), st.none() | factors)
def test_yarn_is_transformers_yarn(
    theta: float,
    width: int,
    factor: float,
    original: int,
    fast: float,
    slow: float,
    truncate: bool,
    attention: float | None,
) -> None:
    given_parameters = {
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "truncate": truncate,
        "attention_factor": attention,
    }
    scaling = YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=attention,
        truncate=truncate,
    )
    check(Rope(theta, width, scaling=scaling), theirs("yarn", theta, width, **given_parameters))


@settings(max_examples=30)
@given(thetas, dims, factors, originals, st.floats(0.5, 2.0), st.floats(2.5, 8.0))
def test_llama3_is_transformers_llama3(
    theta: float, width: int, factor: float, original: int, low: float, high: float
) -> None:
    given_parameters = {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    scaling = Llama3Scaling(factor, low, high, original)
    check(Rope(theta, width, scaling=scaling), theirs("llama3", theta, width, **given_parameters))


@settings(max_examples=20)
@given(thetas, dims, factors)
def test_linear_is_transformers_linear(theta: float, width: int, factor: float) -> None:
    check(Rope(theta, width, scaling=LinearScaling(factor)), theirs("linear", theta, width, factor=factor))


def test_frequencies_without_scaling_fall_from_one() -> None:
    inverse, magnitude = frequencies(Rope(1e4, 8))
    np.testing.assert_allclose(inverse, [1.0, 0.1, 0.01, 0.001], rtol=1e-14)
    assert magnitude == 1.0


SCALINGS: tuple[Scaling | None, ...] = (None, LinearScaling(3.0), YarnScaling(factor=4.0, original_context=16))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("dims", [4, 8])
def test_rotation_depends_on_the_distance_alone(scaling: Scaling | None, dims: int) -> None:
    """Scores of q at i and k at j are those of q at i + s and k at j + s."""
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rope = Rope(100.0, dims, scaling=scaling)
    turned_q, turned_k = (rotate(x.expand(1, 1, 12, 8), rope)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), rtol=1e-12, atol=1e-12)


def test_interleaved_pairs_are_half_split_pairs_in_another_order() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    order = [0, 2, 4, 1, 3, 5, 6, 7]  # of the six dimensions that turn, the even ones first
    half = rotate(x[..., order], Rope(1e4, 6))
    torch.testing.assert_close(rotate(x, Rope(1e4, 6, "interleaved"))[..., order], half, rtol=0, atol=0)


def test_the_first_position_is_not_turned_and_the_rest_of_a_head_never() -> None:
    x = torch.randn(1, 1, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    turned = rotate(x, Rope(1e4, 6))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(turned[..., 6:], x[..., 6:], rtol=0, atol=0)


# Parts that a spec may state


def test_a_norm_gain_multiplies_the_norm_weights() -> None:
    heads = replace(ATTENTION, norm_per_head=True, norm_gain=True)
    model = random_model([layer(heads), layer(DELTA, EXPERTS)])
    folded = replace(ATTENTION, norm_per_head=True)
    gained = {
        f"attn.{x}_norm": stored(values(model, f"attn.{x}_norm") * values(model, f"attn.{x}_gain")[:, None])
        for x in "qk"
    }
    after = with_layer(model, 0, gained, layer(folded))
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= 1e-13  # the products are rounded to float32


def test_norms_of_each_heads_own_that_are_alike_are_one_norm() -> None:
    model = random_model([layer()])
    heads = {
        f"attn.{x}_norm": stored(np.tile(values(model, f"attn.{x}_norm"), (count, 1)))
        for x, count in (("q", ATTENTION.heads), ("k", ATTENTION.kv_heads))
    }
    after = with_layer(model, 0, heads, layer(replace(ATTENTION, norm_per_head=True)))
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= EXACT


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"norm_per_head": True},
        {"norm_whole": True},
        {"norm_gain": True},
        {"norm_per_head": True, "norm_gain": True},
    ],
)
def test_without_rotation_a_norm_after_rope_is_one_before(form: dict[str, Any]) -> None:
    """In every form of the norm; a first position is not rotated, and without rope none is."""
    for rope, prompts in ((None, PROMPTS), (ATTENTION.rope, ((7,),))):
        spec = replace(ATTENTION, rope=rope, **form)
        early = random_model([layer(spec)])
        late = with_layer(early, 0, {}, layer(replace(spec, norm_after_rope=True)))
        assert nmse(reference(late, prompts), reference(early, prompts)) <= EXACT


@pytest.mark.parametrize("length", [1, 4, 9])
def test_weights_of_each_head_follow_rope(length: int) -> None:
    """Equal weights for all heads are one norm's, also where there are as many tokens as heads."""
    spec = replace(ATTENTION, norm_after_rope=True)
    one = random_model([layer(spec)])
    own = random_model([layer(replace(spec, norm_per_head=True))])
    same = {
        role: stored(np.tile(one.layers[0].tensors[role].array(), (heads, 1)))
        for role, heads in (("attn.q_norm", spec.heads), ("attn.k_norm", spec.kv_heads))
    }
    own = with_layer(own, 0, {**one.layers[0].tensors, **same})
    own = replace(own, tensors=one.tensors)
    prompts = (tuple(range(length)),)
    assert nmse(reference(own, prompts), reference(one, prompts)) <= EXACT


def test_a_value_scale_multiplies_the_rows_of_the_values() -> None:
    model = random_model([layer(replace(ATTENTION, value_scale=True))])
    scale = np.array([2.0, 0.25], np.float32)
    model = with_layer(model, 0, {"attn.v_scale": stored(scale)})
    rows = values(model, "attn.v") * np.repeat(scale, ATTENTION.head_dim)[:, None]
    after = with_layer(model, 0, {"attn.v": stored(rows)}, layer())
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= EXACT


def test_scales_of_embedding_and_logits() -> None:
    model = random_model([layer(), layer(DELTA)])
    scaled = random_model([layer(), layer(DELTA)], embedding_scale=4.0, logit_scale=0.5)
    by_hand = with_values(
        model, embedding=values(model, "embedding") * 4.0, output_norm=values(model, "output_norm") * 0.5
    )
    assert nmse(reference(by_hand, PROMPTS), reference(scaled, PROMPTS)) <= EXACT


def test_a_tied_model_reads_its_output_from_the_unscaled_embedding() -> None:
    tied = random_model([layer()], tied=True, embedding_scale=3.0)
    untied = replace(
        tied,
        spec=replace(tied.spec, tied=False),
        tensors={**tied.tensors, "output": tied.tensors["embedding"]},
    )
    assert nmse(reference(untied, PROMPTS), reference(tied, PROMPTS)) == 0.0


def test_an_offset_is_added_to_norm_weights() -> None:
    with_offset = random_model([layer(offset=1.0)])
    shifted = {role: stored(values(with_offset, role).astype(np.float64) + 1.0) for role in ("mixer_norm", "ffn_norm")}
    plain = with_layer(with_offset, 0, shifted, layer())
    assert nmse(reference(plain, PROMPTS), reference(with_offset, PROMPTS)) <= 1e-13


def test_rms_norm_uses_its_epsilon() -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 10.0], dtype=torch.float64)
    expected = torch.tensor([[3.0 * 2.0, 4.0 * 11.0]], dtype=torch.float64) / (12.5 + 0.5) ** 0.5
    torch.testing.assert_close(normed(x, Norm(0.5, 1.0), {"n": weight}, "n"), expected, rtol=1e-15, atol=0)


def test_decay_as_a_rate_is_the_exponential_of_the_logarithm() -> None:
    model = random_model([layer(DELTA)])
    rates = {"delta.decay": stored(-np.exp(values(model, "delta.decay").astype(np.float64)))}
    after = with_layer(model, 0, rates, layer(replace(DELTA, decay="rate")))
    assert nmse(reference(after, PROMPTS), reference(model, PROMPTS)) <= 1e-13


# Routers


logits = st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4, unique=True)


@given(logits, st.integers(1, 4), st.booleans(), st.sampled_from(("softmax", "sigmoid")), st.floats(0.25, 4.0))
def test_a_router_takes_the_largest_and_weighs_them(
    row: list[float], top_k: int, normalised: bool, score: Any, scale: float
) -> None:
    chosen, weights = route(
        Router(top_k=top_k, normalised=normalised, scale=scale, score=score), torch.tensor([row], dtype=torch.float64)
    )
    numbers = np.array(row, np.float64)
    expected = np.exp(numbers) / np.exp(numbers).sum() if score == "softmax" else 1 / (1 + np.exp(-numbers))
    order = np.argsort(-numbers)[:top_k]
    assert chosen[0].tolist() == order.tolist()
    expected = expected[order]
    expected = scale * (expected / expected.sum() if normalised else expected)
    np.testing.assert_allclose(weights[0].numpy(), expected, rtol=1e-12)


def test_a_selection_bias_changes_the_choice_and_not_the_weights() -> None:
    router = Router(top_k=1, normalised=False, score="sigmoid", selection_bias=True)
    row = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    chosen, weights = route(router, row, bias)
    assert chosen.tolist() == [[2]]
    assert weights.item() == pytest.approx(0.5)


# The decoder


def test_padding_changes_nothing() -> None:
    """Sequences of different lengths run together as each does alone."""
    model = Reference(random_model([layer(), layer(DELTA, EXPERTS), layer()]), torch.float64)
    together = model.logits(PROMPTS)
    alone = [model.logits([prompt])[0] for prompt in PROMPTS]
    assert [a.shape[0] for a in together] == [len(prompt) for prompt in PROMPTS]
    assert nmse(together, alone) <= EXACT


def test_later_tokens_do_not_reach_earlier_positions() -> None:
    model = Reference(random_model([layer(), layer(DELTA, EXPERTS)]), torch.float64)
    whole, start = model.logits([[1, 2, 3, 4, 5, 6]])[0], model.logits([[1, 2, 3]])[0]
    np.testing.assert_allclose(whole[:3], start, rtol=1e-12, atol=1e-12)


def test_float32_is_float64_rounded() -> None:
    model = random_model([layer(), layer(DELTA, EXPERTS)])
    narrow = Reference(model).logits(PROMPTS)
    assert narrow[0].dtype == np.float32
    assert 0 < nmse(narrow, reference(model, PROMPTS)) <= 1e-10


def test_points_along_the_way_are_shown_and_are_what_they_are_called() -> None:
    seen: dict[tuple[int, str], torch.Tensor] = {}
    model = Reference(random_model([layer(), layer(DELTA, EXPERTS)]), torch.float64)
    tokens = torch.tensor([[1, 2, 3]])
    hidden = model.forward(tokens, lambda n, point, values: seen.update({(n, point): values}))
    assert torch.equal(seen[-1, "final_norm"], hidden)
    assert torch.equal(seen[-1, "logits"], model.head(hidden))
    for n, before in ((0, seen[-1, "embedding"]), (1, seen[0, "layer_out"])):
        assert torch.equal(seen[n, "mixer_residual"], before + seen[n, "mixer_out"])
        assert torch.equal(seen[n, "layer_out"], seen[n, "mixer_residual"] + seen[n, "ffn_out"])
    weights = model.layers[0]
    assert torch.equal(seen[0, "attn.q"], seen[0, "mixer_norm"] @ weights["attn.q"].T)
    assert torch.equal(seen[0, "attn.heads"] @ weights["attn.o"].T, seen[0, "mixer_out"])
    assert torch.allclose(seen[0, "attn.shares"].sum(-1), torch.ones(1, 3, 4, dtype=torch.float64), rtol=1e-14)
    assert torch.equal(torch.nn.functional.silu(seen[0, "ffn.gate"]) * seen[0, "ffn.up"], seen[0, "ffn.act"])
    weighted = (seen[1, "expert.down"] * seen[1, "moe.weights"][..., None]).sum(-2)
    assert torch.allclose(weighted, seen[1, "moe.out"], rtol=1e-12)
    assert torch.equal(seen[1, "moe.logits"].topk(2).indices, seen[1, "moe.chosen"])
    query = seen[1, "delta.q_unit"][:, -1] / DELTA.key_dim**0.5
    read = torch.einsum("bhk,bhkv->bhv", query, seen[1, "delta.state"][:, 0])
    assert torch.allclose(read, seen[1, "delta.out"][:, -1], rtol=1e-12)


def test_observation_changes_no_bit() -> None:
    model = Reference(random_model([layer(), layer(DELTA, EXPERTS)]))
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.forward(tokens), model.forward(tokens, lambda *_: None))
