"""Rewrites of norms and of the residual stream: the reference computes the same before and after, with features in any
combination."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.model.rope import Rope, YarnScaling
from gguf_tools.model.spec import MLP, Attention, GatedMLP, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.norms import CENTRED_STREAM, FOLDED_EMBEDDING_NORM, NORM_BIASES, UNIT_NORMS
from gguf_tools.rewrites.output_bias import output_bias_at
from gguf_tools.rewrites.post_norms import LEVEL, POST_NORM_IDENTITY
from gguf_tools.rewrites.residual import EMBEDDING_ROOT, FOLDED_INPUT_SCALE
from gguf_tools.rewrites.rope_pairs import FORWARD_ROPE, NORM_BEFORE_ROPE
from gguf_tools.tensors.base import InMemory
from gguf_tools.tensors.products import Centred, Identity, Product, RowsMapped, ScaledColumns
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, EXPERTS, PROMPTS, filled, random_model

FLOAT32 = 1e-11
"""Weights are rounded to float32 once or twice."""
HIDDEN, VOCAB = 24, 40
PLAIN = Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(1e4, 8))
booleans = st.booleans()
seeds = st.integers(0, 1 << 20)


def model(layers: list[LayerSpec], norm: Norm, seed: int = 0, **fields: Any) -> Model:
    """A model of these layers with random weights, norms and biases far from 1 and 0."""
    given = {"vocab_size": VOCAB, "hidden": HIDDEN, "context_length": 64, "tied": False, **fields}
    spec = ModelSpec(layers=tuple(layers), output_norm=norm, **given)
    rng = np.random.default_rng(seed)

    def fill(role: str, shape: tuple[int, ...]) -> InMemory:
        values = rng.standard_normal(shape) / shape[-1] ** 0.5 + (0.7 if len(shape) == 1 else 0.1)
        return InMemory(values.astype(np.float32), (role,))

    return filled(spec, fill)


def error(before: Model, after: Model) -> float:
    return nmse(reference(after, PROMPTS), reference(before, PROMPTS))


@settings(max_examples=25, deadline=None)
@given(bias=booleans, weighted=booleans, tied=booleans, parallel=booleans, gated=booleans, seed=seeds)
def test_layer_norms_become_rms_norms(
    bias: bool, weighted: bool, tied: bool, parallel: bool, gated: bool, seed: int
) -> None:
    norm = Norm(1e-5, 0.5 if weighted else 0.0, centred=True, bias=bias, weighted=weighted)
    mixer = replace(PLAIN, gated=gated, bias=frozenset("qo" if gated else ""))
    ffn = GatedMLP(20, frozenset({"down"})) if gated else MLP(20, "silu")
    layer = LayerSpec(mixer, ffn, norm, None if parallel else norm, parallel=parallel)
    before = model([layer] * 2, norm, seed, tied=tied, positions=64, embedding_scale=2.0)
    after = before
    for rewrite in (UNIT_NORMS, NORM_BIASES, CENTRED_STREAM):
        if rewrite.applies(after.spec):
            assert rewrite.suits(after.spec), rewrite.name
            after = rewrite.apply(after)
    plain = after.spec.output_norm
    assert plain == replace(plain, centred=False, bias=False, weighted=True)
    assert after.spec.output_bias == bias
    assert error(before, after) < FLOAT32


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, norm: replace(layer, ffn_norm=None),
        lambda layer, norm: replace(layer, mixer_norm=None),
        lambda layer, norm: replace(layer, mixer_post_norm=replace(norm, centred=False)),
        lambda layer, norm: replace(layer, ffn_norm=replace(norm, centred=False)),
    ],
)
def test_a_stream_that_is_read_with_its_mean_is_left(change: Any) -> None:
    norm = Norm(1e-5, centred=True)
    layer = change(LayerSpec(PLAIN, GatedMLP(20), norm, norm), norm)
    assert not CENTRED_STREAM.applies(model([layer], norm).spec)


def test_biases_that_experts_read_are_left() -> None:
    norm = Norm(1e-5, centred=True, bias=True)
    spec = model([LayerSpec(PLAIN, EXPERTS, norm, norm)], norm).spec
    assert not NORM_BIASES.applies(spec)
    assert not CENTRED_STREAM.applies(spec)


def test_experts_are_centred_each_by_itself() -> None:
    norm = Norm(1e-5, centred=True)
    before = model([LayerSpec(PLAIN, EXPERTS, norm, norm)] * 2, norm)
    assert error(before, CENTRED_STREAM.apply(before)) < FLOAT32


@settings(max_examples=15, deadline=None)
@given(centred=booleans, weighted=booleans, bias=booleans, tied=booleans, seed=seeds)
def test_normed_embeddings_are_stored(centred: bool, weighted: bool, bias: bool, tied: bool, seed: int) -> None:
    norm = Norm(1e-5, 0.5 if weighted else 0.0, centred=centred, weighted=weighted, bias=bias)
    plain = Norm(1e-5)
    layer = LayerSpec(PLAIN, GatedMLP(20), plain, plain)
    before = model([layer], plain, seed, embedding_norm=norm, tied=tied, embedding_scale=3.0)
    assert FOLDED_EMBEDDING_NORM.suits(before.spec)
    after = FOLDED_EMBEDDING_NORM.apply(before)
    assert not FOLDED_EMBEDDING_NORM.applies(after.spec)
    assert error(before, after) < FLOAT32


BACK = {
    "half": Rope(1e4, 8, backwards=True),
    "interleaved": Rope(1e4, 8, "interleaved", backwards=True),
    "part of a head": Rope(1e4, 4, backwards=True),
    "part, interleaved": Rope(1e4, 6, "interleaved", backwards=True),
    "yarn": Rope(1e4, 8, "half", YarnScaling(factor=4.0, original_context=16), backwards=True),
}


@pytest.mark.parametrize("rope", BACK.values(), ids=list(BACK))
@settings(max_examples=6, deadline=None)
@given(normed=booleans, whole=booleans, biased=booleans, late=booleans, seed=seeds)
def test_rope_backwards(rope: Rope, normed: bool, whole: bool, biased: bool, late: bool, seed: int) -> None:
    mixer = replace(
        PLAIN,
        rope=rope,
        bias=frozenset("qk" if biased else ""),
        qk_norm=Norm(1e-6, 0.3) if normed else None,
        norm_whole=normed and whole,
        norm_after_rope=normed and late and not whole,
    )
    norm = Norm(1e-5)
    before = model([LayerSpec(mixer, GatedMLP(20), norm, norm)] * 2, norm, seed)
    assert FORWARD_ROPE.applies(before.spec)
    assert FORWARD_ROPE.suits(before.spec)
    after = FORWARD_ROPE.apply(before)
    assert not FORWARD_ROPE.applies(after.spec)
    # Signs alone change.
    assert error(before, after) < 1e-22
    assert nmse(reference(before, PROMPTS), reference(_forwards(before), PROMPTS)) > 1e-12


def _forwards(before: Model) -> Model:
    """The model with the same weights and the other direction."""
    layers = []
    for layer in before.spec.layers:
        mixer = layer.mixer
        assert isinstance(mixer, Attention)
        assert mixer.rope
        layers.append(replace(layer, mixer=replace(mixer, rope=replace(mixer.rope, backwards=False))))
    return replace(before, spec=replace(before.spec, layers=tuple(layers)))


def test_a_layer_norm_of_heads_keeps_its_direction() -> None:
    mixer = replace(PLAIN, rope=BACK["half"], qk_norm=Norm(1e-6, centred=True))
    norm = Norm(1e-5)
    assert not FORWARD_ROPE.applies(model([LayerSpec(mixer, GatedMLP(20), norm, norm)], norm).spec)


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [8, 4])
def test_norm_before_rope(pairs: Any, dims: int) -> None:
    mixer = replace(PLAIN, rope=Rope(1e4, dims, pairs), qk_norm=Norm(1e-6), norm_after_rope=True)
    norm = Norm(1e-5)
    before = model([LayerSpec(mixer, GatedMLP(20), norm, norm)] * 2, norm)
    assert not NORM_BEFORE_ROPE.holds(before)
    each = np.arange(1, 9, dtype=np.float32) / 4
    each[:dims] = np.repeat(each[: dims // 2], 2) if pairs == "interleaved" else np.tile(each[: dims // 2], 2)
    weights = {f"attn.{name}_norm": InMemory((each * by).astype(np.float32)) for name, by in (("q", 1), ("k", 3))}
    even = before.with_layers(replace(la, tensors={**la.tensors, **weights}) for la in before.layers)
    assert NORM_BEFORE_ROPE.holds(even)
    assert NORM_BEFORE_ROPE.suits(even.spec)
    after = NORM_BEFORE_ROPE.apply(even)
    assert not NORM_BEFORE_ROPE.applies(after.spec)
    assert error(even, after) < 1e-22


def test_a_norm_that_would_see_yarns_factor_stays() -> None:
    rope = Rope(1e4, 8, scaling=YarnScaling(factor=4.0, original_context=16))
    mixer = replace(PLAIN, rope=rope, qk_norm=Norm(1e-6, weighted=False), norm_after_rope=True)
    norm = Norm(1e-5)
    assert not NORM_BEFORE_ROPE.applies(model([LayerSpec(mixer, GatedMLP(20), norm, norm)], norm).spec)


@settings(max_examples=10, deadline=None)
@given(factors=st.lists(st.floats(0.8, 1.6), min_size=3, max_size=3), parallel=booleans, seed=seeds)
def test_factors_on_the_stream(factors: list[float], parallel: bool, seed: int) -> None:
    norm = Norm(1.2e-7)
    layers = [
        LayerSpec(PLAIN, GatedMLP(20), norm, norm, input_scale=factor, parallel=parallel, residual_scale=0.7)
        for factor in factors
    ]
    before = model(layers, norm, seed, embedding_norm=replace(norm, weighted=False))
    after = FOLDED_INPUT_SCALE.apply(before)
    assert FOLDED_INPUT_SCALE.applies(before.spec) != all(factor == 1.0 for factor in factors)
    assert FOLDED_INPUT_SCALE.suits(before.spec)
    assert not FOLDED_INPUT_SCALE.applies(after.spec)
    assert error(before, after) < FLOAT32


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-3])
def test_factors_that_do_not_fold(factor: float) -> None:
    norm = Norm(1e-6)
    layer = LayerSpec(PLAIN, GatedMLP(20), norm, norm, input_scale=factor)
    assert not FOLDED_INPUT_SCALE.applies(model([layer], norm, embedding_norm=norm).spec)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_embeddings_divided_by_the_root(tied: bool, bias: bool) -> None:
    norm = Norm(1e-5, 0.5, centred=bias, bias=bias)
    before = model([LayerSpec(PLAIN, GatedMLP(20), norm, norm)], norm, tied=tied, embedding_scale=3.0)
    after = EMBEDDING_ROOT.apply(before)
    assert not EMBEDDING_ROOT.applies(after.spec)
    assert after.spec.tied == tied
    assert error(before, after) < FLOAT32


@settings(max_examples=20, deadline=None)
@given(
    activation=st.sampled_from(["silu", "gelu", "gelu_tanh"]),
    eps=st.sampled_from([1e-5, 1e-7]),
    weighted=booleans,
    tied=booleans,
    bias=booleans,
    gated=booleans,
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=seeds,
)
def test_norms_after_the_parts_change_nothing(
    activation: Any, eps: float, weighted: bool, tied: bool, bias: bool, gated: bool, size: float, seed: int
) -> None:
    """Embeddings from far below the epsilon's root to far above it, and outputs of the layers of every size against them."""
    norm = Norm(eps, 0.5 if weighted else 0.0, weighted=weighted)
    mixer = replace(ATTENTION, bias=frozenset("qvo" if bias else ""), gated=gated, window=5)
    layer = LayerSpec(mixer, GatedMLP(20, activation=activation), norm, norm)
    before = model([layer] * 3, norm, seed, tied=tied, embedding_scale=size, logit_softcap=15.0)
    after = before
    for rewrite in (POST_NORM_IDENTITY, output_bias_at(LEVEL), EMBEDDING_ROOT):
        assert rewrite.applies(after.spec), rewrite.name
        assert rewrite.suits(after.spec), rewrite.name
        after = rewrite.apply(after)
    assert all(la.mixer_post_norm and la.ffn_post_norm for la in after.spec.layers)
    assert error(before, after) < FLOAT32


def test_no_entry_of_the_constants_is_beyond_float16() -> None:
    norm = Norm(1e-6)
    layer = LayerSpec(ATTENTION, GatedMLP(20, activation="gelu"), norm, norm)
    after = output_bias_at(LEVEL).apply(POST_NORM_IDENTITY.apply(model([layer], norm, logit_softcap=15.0)))
    matrices = {role: t.array() for role, t in after.layer_tensors[0].items() if len(t.shape) == 2}
    assert max(np.abs(values).max() for values in matrices.values()) == 2.0**15
    assert np.abs(after.layer_tensors[0]["attn.v_bias"].array()).max() == LEVEL


@pytest.mark.parametrize("change", [{"logit_softcap": None}, {"output_norm": Norm(1e-5)}])
def test_other_models_keep_their_form(change: dict[str, Any]) -> None:
    norm = Norm(1e-6)
    spec = random_model([LayerSpec(ATTENTION, GatedMLP(20), norm, norm)], logit_softcap=15.0).spec
    assert POST_NORM_IDENTITY.applies(spec)
    assert not POST_NORM_IDENTITY.applies(replace(spec, **change))


# The views


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_views_read_any_range(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    matrix, vector = rng.standard_normal((7, 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    experts, added = rng.standard_normal((3, 4, 5)).astype(np.float32), rng.standard_normal(7).astype(np.float32)
    base = InMemory(matrix)
    views = [
        (Centred(base), matrix - matrix.mean(axis=0)),
        (Centred(InMemory(added)), added - added.mean()),
        (Centred(InMemory(experts)), experts - experts.mean(axis=1, keepdims=True)),
        (RowsMapped(base, lambda rows: rows[:, ::-1] * 2, "mirrored"), matrix[:, ::-1] * 2),
        (ScaledColumns(base, InMemory(vector), 1.0), matrix * (vector + 1)),
        (Product(base, InMemory(vector)), matrix @ vector),
        (Product(base, InMemory(vector), InMemory(added)), matrix @ vector + added),
        (Identity(6), np.eye(6)),
    ]
    for view, wanted in views:
        assert view.shape == wanted.shape
        start = data.draw(st.integers(0, view.size))
        stop = data.draw(st.integers(start, view.size))
        assert np.allclose(view.flat(start, stop), wanted.reshape(-1)[start:stop], atol=1e-6)
