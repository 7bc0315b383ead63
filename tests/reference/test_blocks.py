"""A sequence read layer by layer and block by block gives the logits of a whole forward pass."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from gguf_tools.model.features import undeclared
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Mamba2, Model, ModelSpec, ShortConv
from gguf_tools.reference import Reference, mixers, weights
from gguf_tools.reference.decoder import EXPRESSES
from gguf_tools.reference.weights import Weights
from tests.oracle import nmse
from tests.random_model import ATTENTION, DELTA, EXPERTS, layer, random_model
from tests.specs.check import started
from tests.specs.draw import draw, model, nonsense, plain

EXACT = 1e-24
LENGTH = 41
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 40, LENGTH)]
SIZES = (1, 3, 16, LENGTH, 100)

ATTENTIONS = {
    "plain": ATTENTION,
    "one group": replace(ATTENTION, kv_heads=4),
    "one key head": replace(ATTENTION, kv_heads=1),
    "window": replace(ATTENTION, window=7),
    "sinks": replace(ATTENTION, sinks=True),
    "alibi": replace(ATTENTION, rope=None, alibi=8.0),
    "softcap": replace(ATTENTION, softcap=3.0),
    "values of another width": replace(ATTENTION, value_dim=12),
    "gated, normed after rope": replace(ATTENTION, gated=True, norm_after_rope=True),
}


def check(made: Model, sizes: tuple[int, ...] = SIZES) -> None:
    reference = Reference(made, torch.float64)
    (whole,) = reference.logits([TOKENS])
    for size in sizes:
        blocks = list(reference.blocks(TOKENS, size))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert nmse([np.concatenate(blocks)], [whole]) < EXACT


@pytest.mark.parametrize("mixer", ATTENTIONS.values(), ids=list(ATTENTIONS))
def test_attention(mixer: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    made = random_model([layer(mixer), layer(mixer, EXPERTS)])
    check(made)
    (expected,) = Reference(made, torch.float64).logits([TOKENS])
    for room in (1, 8 * 4 * LENGTH * 5):  # one query at a time, and five, which do not divide the length
        monkeypatch.setattr(mixers, "_SCORE_BYTES", room)
        (found,) = Reference(made, torch.float64).logits([TOKENS])
        assert nmse([found], [expected]) < EXACT
        check(made, (16,))


def test_recurrent_layers_beside_attention() -> None:
    ssm = plain(Mamba2)
    layers = [layer(DELTA), layer(ATTENTION), layer(plain(ShortConv)), layer(ssm), replace(layer(), beside=ssm)]
    check(random_model(layers))


def test_positions_and_a_short_sequence() -> None:
    """Learned positions are those of the sequence, not of the block; blocks may be longer than it."""
    check(random_model([layer(replace(ATTENTION, rope=None))], positions=64))


@pytest.mark.parametrize("seed", range(16))
def test_any_spec(seed: int) -> None:
    """Whatever the language of specs holds: a random walk from a family's spec."""

    def computed(spec: ModelSpec) -> bool:
        return not undeclared(spec.features, EXPRESSES) and not nonsense(spec)

    spec = draw(seed, started(seed)[1], computed)
    if computed(spec):
        check(model(spec, seed), (5,))


def test_progress_counts_layers() -> None:
    seen: list[tuple[int, int]] = []
    made = random_model([layer()] * 3)
    next(Reference(made).blocks(TOKENS, 8, lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    spec: LayerSpec = made.spec.layers[0]
    assert spec.mixer == ATTENTION


def test_streamed_layers_give_the_same_logits_and_one_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = random_model([layer(ATTENTION), layer(DELTA, EXPERTS), layer(ATTENTION)])
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    read = weights.load_layer

    def noted(one: Layer, dtype: torch.dtype) -> Weights:
        assert not alive, "another layer is still in memory"
        found = read(one, dtype)
        for weight in found.values():
            alive.add(weight)
        return found

    monkeypatch.setattr(weights, "load_layer", noted)
    streamed, whole = Reference(made, torch.float64, streamed=True), Reference(made, torch.float64)
    np.testing.assert_array_equal(streamed.logits([TOKENS])[0], whole.logits([TOKENS])[0])
    np.testing.assert_array_equal(
        np.concatenate(list(streamed.blocks(TOKENS, 16))), np.concatenate(list(whole.blocks(TOKENS, 16)))
    )
