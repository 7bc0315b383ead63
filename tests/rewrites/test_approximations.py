"""Approximations: whether they apply, the models they make, and the figures they state, against numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gguf_tools.model.rope import LinearScaling, Rope, YarnScaling
from gguf_tools.model.spec import Attention, LayerSpec, Model, MoE
from gguf_tools.reference import Reference
from gguf_tools.rewrites.approximations import (
    SOFTMAX_ROUTER,
    TRUNCATED_YARN,
    UNCAPPED,
    LayerFit,
    LogitFit,
    fitted_slope,
    router_logits,
)
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, PROMPTS, VOCAB, layer, random_model

Array = NDArray[np.float64]
SIGMOID = replace(EXPERTS, router=replace(EXPERTS.router, score="sigmoid", selection_bias=True))
YARN = YarnScaling(factor=4.0, original_context=16, truncate=False)
TOKENS = tuple(tuple(int(n) for n in np.random.default_rng(3).integers(0, VOCAB, 60)) for _ in range(5))


def routers(**changes: Any) -> LayerSpec:
    """A layer of experts with a router that is changed."""
    return layer(feed_forward=replace(SIGMOID, router=replace(SIGMOID.router, **changes)))


def yarn(scaling: Any = YARN, feed_forward: Any = EXPERTS) -> LayerSpec:
    rope = Rope(30.0, 8, scaling=scaling)
    return layer(replace(ATTENTION, rope=rope), feed_forward)


def inputs_of_routers(model: Model) -> dict[int, Array]:
    """What the norm before the feed-forward gives, by layer, the tokens of all sequences one after another."""
    seen: dict[int, list[Array]] = {}

    def observe(n: int, point: str, values: torch.Tensor) -> None:
        if point == "ffn_norm":
            seen.setdefault(n, []).append(values[0].double().numpy())

    made = Reference(model)
    with torch.inference_mode():
        for tokens in TOKENS:
            made.forward(torch.tensor([tokens]), observe)
    return {n: np.concatenate(parts) for n, parts in seen.items()}


def selected(model: Model, n: int, logits: Array, count: int) -> list[frozenset[int]]:
    """The experts with the largest sums of logit and bias, for each token."""
    bias = model.layers[n].tensors["moe.router_bias"].array() if "moe.router_bias" in model.layers[n].tensors else 0.0
    return [frozenset(sorted(range(len(row)), key=lambda e: -row[e])[:count]) for row in logits + bias]


def softmax(rows: Array) -> Array:
    made: Array = np.exp(rows) / np.exp(rows).sum(axis=-1, keepdims=True)
    return made


@pytest.mark.parametrize("logit_bias", [False, True])
def test_router_logits(logit_bias: bool) -> None:
    """Layers without a router have none; sequences of any length follow each other."""
    model = random_model([layer(), routers(logit_bias=logit_bias), routers(logit_bias=logit_bias)])
    found, inputs = router_logits(model, TOKENS), inputs_of_routers(model)
    assert found.keys() == {1, 2}
    for n, logits in found.items():
        tensors = model.layers[n].tensors
        wanted = inputs[n] @ tensors["moe.router"].array().astype(np.float64).T
        if logit_bias:
            wanted = wanted + tensors["moe.logit_bias"].array()
        np.testing.assert_allclose(logits, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(400, 2), (300, 5)])
def test_the_slope_is_that_of_least_squares(shape: tuple[int, int]) -> None:
    logits = np.random.default_rng(1).standard_normal(shape) * 3 - 1
    slope, error = fitted_slope(logits)
    centred = logits - logits.mean(axis=1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-logits))
    logs = np.log(sigmoid) - np.log(sigmoid).mean(axis=1, keepdims=True)
    (wanted,), *_ = np.linalg.lstsq(centred.reshape(-1, 1), logs.reshape(-1), rcond=None)
    assert slope == pytest.approx(float(wanted), rel=1e-12)
    weights = sigmoid / sigmoid.sum(axis=1, keepdims=True)
    assert error == pytest.approx(float(np.sqrt(np.mean((softmax(slope * logits) - weights) ** 2))), rel=1e-9)


def test_large_logits_have_a_slope() -> None:
    slope, error = fitted_slope(np.array([[900.0, 800.0], [-900.0, -905.0]]))
    assert np.isfinite(slope)
    assert 0 <= error < 1


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([routers()], True),
        ([layer(), routers()], True),
        ([routers(), routers(selection_bias=False)], True),
        ([routers(selection_bias=False)], False),
        ([routers(score="softmax")], False),
        ([routers(normalised=False)], False),
        ([routers(), routers(normalised=False)], False),
        ([layer()], False),
    ],
)
def test_a_sigmoid_router_with_a_bias_is_replaced(layers: Sequence[LayerSpec], wanted: bool) -> None:
    assert SOFTMAX_ROUTER.applies(random_model(layers).spec) == wanted


def test_what_the_softmax_router_states() -> None:
    model = random_model([routers(), routers(top_k=3), layer()], seed=0)
    made, fits = SOFTMAX_ROUTER.apply(model, TOKENS)
    inputs, other = router_logits(model, TOKENS), router_logits(made, TOKENS)
    assert [fit.layer for fit in fits if isinstance(fit, LayerFit)] == [0, 1]
    assert any(fit.agreement < 1.0 for fit in fits)
    for fit, count in zip(fits, (2, 3), strict=True):
        assert isinstance(fit, LayerFit)
        n, logits = fit.layer, inputs[fit.layer]
        before = selected(model, n, logits, count)
        chosen = np.array([sorted(experts) for experts in before])
        slope, error = fitted_slope(np.take_along_axis(logits, chosen, axis=1))
        assert fit.slope == pytest.approx(slope, rel=1e-9)
        assert fit.weight_error == pytest.approx(error, rel=1e-9)
        after = selected(made, n, other[n], count)
        assert fit.agreement == pytest.approx(np.mean([a == b for a, b in zip(before, after, strict=True)]))
        for role in ("moe.router", "moe.router_bias"):
            old, new = (one.layers[n].tensors[role].array() for one in (model, made))
            np.testing.assert_allclose(new, old * slope, rtol=1e-6)
        ffn = made.layers[n].spec.feed_forward
        assert isinstance(ffn, MoE)
        assert (ffn.router.score, ffn.router.selection_bias, ffn.router.top_k) == ("softmax", True, count)
    assert made.layers[2] == model.layers[2]


def test_without_tokens_the_softmax_router_has_the_logits_as_they_are() -> None:
    model = random_model([routers(), layer()])
    made, fits = SOFTMAX_ROUTER.apply(model, None)
    assert fits == ()
    for role in ("moe.router", "moe.router_bias"):
        assert np.array_equal(made.layers[0].tensors[role].array(), model.layers[0].tensors[role].array())


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ([yarn()], True),
        ([layer(), yarn()], True),
        ([layer(DELTA), layer(replace(ATTENTION, rope=None)), yarn()], True),
        ([yarn(replace(YARN, truncate=True))], False),
        ([yarn(LinearScaling(2.0))], False),
        ([layer(), layer(DELTA)], False),
    ],
)
def test_a_yarn_that_is_not_truncated_is_replaced(layers: Sequence[LayerSpec], wanted: bool) -> None:
    assert TRUNCATED_YARN.applies(random_model(layers).spec) == wanted


def test_what_the_truncated_yarn_states() -> None:
    others = [layer(DELTA), yarn(LinearScaling(2.0)), layer(replace(ATTENTION, rope=None))]
    model = random_model([yarn(), yarn(feed_forward=replace(EXPERTS, router=SIGMOID.router)), *others], seed=9)
    made, fits = TRUNCATED_YARN.apply(model, TOKENS)
    for old, new in zip(model.layers[:2], made.layers[:2], strict=True):
        before, after = old.spec.mixer, new.spec.mixer
        assert isinstance(before, Attention)
        assert isinstance(after, Attention)
        assert before.rope
        assert after == replace(before, rope=replace(before.rope, scaling=replace(YARN, truncate=True)))
    assert made.layers[2:] == model.layers[2:]
    assert nmse(reference(made, PROMPTS), reference(model, PROMPTS)) > 0
    first, second = router_logits(model, TOKENS), router_logits(made, TOKENS)
    assert [fit.layer for fit in fits if isinstance(fit, LayerFit)] == sorted(first)
    assert any(fit.agreement < 1.0 for fit in fits)
    for fit in fits:
        assert isinstance(fit, LayerFit)
        n = fit.layer
        experts, afterwards = selected(model, n, first[n], 2), selected(made, n, second[n], 2)
        assert fit.agreement == pytest.approx(np.mean([a == b for a, b in zip(experts, afterwards, strict=True)]))
        chosen = np.array([sorted(each) for each in experts])
        weights = [softmax(np.take_along_axis(each, chosen, axis=1)) for each in (first[n], second[n])]
        assert fit.weight_error == pytest.approx(float(np.sqrt(np.mean((weights[0] - weights[1]) ** 2))), rel=1e-9)
        assert fit.slope == 1.0
    assert TRUNCATED_YARN.apply(model, None) == (made, ())


@pytest.mark.parametrize("cap", [0.2, 5.0])
def test_what_the_uncapped_model_states(cap: float) -> None:
    capped = random_model([layer()], logit_softcap=cap)
    assert UNCAPPED.applies(capped.spec)
    assert UNCAPPED.saves
    made, (fit,) = UNCAPPED.apply(capped, PROMPTS)
    assert not UNCAPPED.applies(made.spec)
    assert isinstance(fit, LogitFit)
    wanted, found = (np.concatenate(reference(one, PROMPTS)).astype(np.float64) for one in (capped, made))
    p = softmax(wanted)
    kl = (p * (np.log(p) - np.log(softmax(found)))).sum(axis=1).mean()
    assert fit.kl == pytest.approx(float(kl), rel=1e-4)
    assert fit.agreement == pytest.approx(float((wanted.argmax(axis=1) == found.argmax(axis=1)).mean()))
    assert fit.nmse == pytest.approx(float(np.square(found - wanted).sum() / np.square(wanted).sum()), rel=1e-4)
    assert UNCAPPED.apply(capped, None) == (made, ())


def test_no_other_approximation_saves_weights() -> None:
    assert [one.saves for one in (SOFTMAX_ROUTER, TRUNCATED_YARN, UNCAPPED)] == [False, False, True]
