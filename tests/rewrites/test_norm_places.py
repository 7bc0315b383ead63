"""Where norms may be rewritten, and what they become: centred streams, weights of ones, and biases in projections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.model.spec import MLP, Attention, GatedMLP, LayerSpec, Norm
from gguf_tools.rewrites.norms import CENTRED_STREAM, FOLDED_EMBEDDING_NORM, NORM_BIASES, UNIT_NORMS
from gguf_tools.tensors.products import RowsMapped
from tests.random_model import EXPERTS
from tests.rewrites.test_norms import FLOAT32, PLAIN, error, model


def layered(norm: Norm, **more: Any) -> LayerSpec:
    return LayerSpec(PLAIN, GatedMLP(20), norm, norm, **more)


CENTRED, PLAIN_NORM = Norm(1e-5, centred=True), Norm(1e-5)


@pytest.mark.parametrize(
    ("layers", "norm", "wanted"),
    [
        ([layered(CENTRED)], CENTRED, True),
        ([replace(layered(CENTRED), ffn_norm=None, parallel=True)], CENTRED, True),
        ([layered(CENTRED, mixer_post_norm=CENTRED, ffn_post_norm=CENTRED)], CENTRED, True),
        ([layered(CENTRED)], PLAIN_NORM, False),
        ([layered(CENTRED)], replace(CENTRED, bias=True), False),
        ([layered(PLAIN_NORM)], CENTRED, False),
        ([layered(PLAIN_NORM)], PLAIN_NORM, False),
        ([layered(CENTRED), replace(layered(CENTRED), mixer_norm=PLAIN_NORM)], CENTRED, False),
        ([layered(CENTRED), replace(layered(CENTRED), ffn_norm=replace(CENTRED, bias=True))], CENTRED, False),
        ([layered(CENTRED, ffn_post_norm=PLAIN_NORM)], CENTRED, False),
        ([replace(layered(CENTRED), ffn_norm=None)], CENTRED, False),
        ([replace(layered(CENTRED), mixer_norm=None)], CENTRED, False),
        ([replace(layered(CENTRED), mixer_norm=None, parallel=True)], CENTRED, False),
    ],
)
def test_which_streams_are_centred(layers: list[LayerSpec], norm: Norm, wanted: bool) -> None:
    assert CENTRED_STREAM.applies(model(layers, norm).spec) == wanted


def test_post_norms_of_a_centred_stream() -> None:
    """What they give is not centred, so that these models are not taken, though every norm subtracts a mean."""
    spec = model([layered(CENTRED, mixer_post_norm=CENTRED, ffn_post_norm=CENTRED)], CENTRED).spec
    assert not CENTRED_STREAM.suits(spec)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_added_to_the_stream_has_no_mean(tied: bool) -> None:
    mixer = replace(PLAIN, bias=frozenset("qo"))
    layers = [LayerSpec(mixer, ffn, CENTRED, CENTRED) for ffn in (MLP(20, "gelu", frozenset({"up", "down"})), EXPERTS)]
    before = model(layers, CENTRED, positions=64, tied=tied)
    after = CENTRED_STREAM.apply(before)
    assert error(before, after) < FLOAT32
    assert not after.spec.tied
    for role in ("embedding", "positions"):
        rows = before.tensors[role].array().astype(np.float64)
        wanted = rows - rows.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(after.tensors[role].array(), wanted, atol=1e-6)
    assert after.tensors["output"] is before.tensors["embedding" if tied else "output"]
    for old, new in zip(before.layers, after.layers, strict=True):
        for role, tensor in new.tensors.items():
            if role.endswith((".o", ".down", ".o_bias", ".down_bias")):
                axis = -2 if role.endswith((".o", ".down")) else 0
                assert np.abs(tensor.array().mean(axis=axis)).max() < 1e-6
            else:
                assert tensor is old.tensors[role]


def test_norms_without_weights_are_found_wherever_they_are() -> None:
    bare = Norm(1e-5, weighted=False)
    changes: list[tuple[dict[str, Any], Norm]] = [
        ({}, bare),
        ({"mixer_norm": bare}, PLAIN_NORM),
        ({"ffn_norm": bare}, PLAIN_NORM),
        ({"mixer_post_norm": bare}, PLAIN_NORM),
        ({"ffn_post_norm": bare}, PLAIN_NORM),
        ({"mixer": replace(PLAIN, qk_norm=bare)}, PLAIN_NORM),
    ]
    assert not UNIT_NORMS.applies(model([layered(PLAIN_NORM)], PLAIN_NORM).spec)
    for change, norm in changes:
        before = model([layered(PLAIN_NORM), replace(layered(PLAIN_NORM), **change)], norm)
        assert UNIT_NORMS.applies(before.spec)
        after = UNIT_NORMS.apply(before)
        assert not UNIT_NORMS.applies(after.spec)
        assert error(before, after) == 0.0
        assert after.spec.layers[0] == before.spec.layers[0]


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_weights_of_ones_have_no_offset(offset: float) -> None:
    bare = Norm(1e-5, offset, weighted=False)
    mixer = replace(PLAIN, qk_norm=bare)
    before = model([LayerSpec(mixer, GatedMLP(20), bare, Norm(1e-5, offset))], bare)
    after = UNIT_NORMS.apply(before)
    made = after.spec.layers[0]
    assert made.mixer_norm == after.spec.output_norm == PLAIN_NORM
    assert isinstance(made.mixer, Attention)
    assert made.mixer.qk_norm == PLAIN_NORM
    assert made.ffn_norm == Norm(1e-5, offset)
    for tensor in (after.tensors["output_norm"], *(after.layers[0].tensors[f"attn.{name}_norm"] for name in "qk")):
        assert set(tensor.array()) == {1.0}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("stated", [False, True])
def test_the_bias_of_the_last_norm_is_one_on_the_logits(tied: bool, stated: bool) -> None:
    biased = replace(PLAIN_NORM, bias=True)
    before = model([layered(PLAIN_NORM)], biased, tied=tied, output_bias=stated)
    assert NORM_BIASES.applies(before.spec)
    after = NORM_BIASES.apply(before)
    assert (after.spec.output_norm, after.spec.output_bias) == (PLAIN_NORM, True)
    output = before.tensors["embedding" if tied else "output"].array().astype(np.float64)
    wanted = output @ before.tensors["output_norm_bias"].array().astype(np.float64)
    wanted = wanted + before.tensors["output_bias"].array() if stated else wanted
    np.testing.assert_allclose(after.tensors["output_bias"].array(), wanted, rtol=1e-5, atol=1e-6)
    assert after.layers[0].tensors == before.layers[0].tensors
    assert error(before, after) < FLOAT32


def test_biases_go_where_their_norm_is_read() -> None:
    biased = replace(PLAIN_NORM, bias=True)
    mixer = replace(PLAIN, gated=True, bias=frozenset("q"))
    for spec, added in (
        (LayerSpec(mixer, GatedMLP(20), biased, PLAIN_NORM), {"attn.q", "attn.k", "attn.v", "attn.gate"}),
        (LayerSpec(PLAIN, GatedMLP(20), biased, PLAIN_NORM), {"attn.q", "attn.k", "attn.v"}),
        (LayerSpec(PLAIN, GatedMLP(20), PLAIN_NORM, biased), {"ffn.gate", "ffn.up"}),
        (LayerSpec(PLAIN, MLP(20, "gelu"), PLAIN_NORM, biased), {"ffn.up"}),
        (
            LayerSpec(PLAIN, GatedMLP(20), biased, None, parallel=True),
            {"attn.q", "attn.k", "attn.v", "ffn.gate", "ffn.up"},
        ),
    ):
        before = model([spec], PLAIN_NORM)
        after = NORM_BIASES.apply(before)
        assert {role.removesuffix("_bias") for role in after.layers[0].tensors if role.endswith("_bias")} == added
        assert error(before, after) < FLOAT32
        for role, tensor in before.layers[0].tensors.items():
            if not role.endswith("_bias"):
                assert after.layers[0].tensors[role] is tensor


def test_an_embedding_without_a_norm_is_left() -> None:
    before = model([layered(PLAIN_NORM)], PLAIN_NORM)
    assert FOLDED_EMBEDDING_NORM.apply(before) is before


def test_centring_is_linear_and_norming_is_not() -> None:
    """A low-rank adapter of the embedding can pass through the one, and not through the other."""
    centred = CENTRED_STREAM.apply(model([layered(CENTRED)], CENTRED)).tensors["embedding"]
    normed = FOLDED_EMBEDDING_NORM.apply(model([layered(PLAIN_NORM)], PLAIN_NORM, embedding_norm=PLAIN_NORM))
    assert isinstance(centred, RowsMapped)
    assert centred.linear
    stored = normed.tensors["embedding"]
    assert isinstance(stored, RowsMapped)
    assert not stored.linear
