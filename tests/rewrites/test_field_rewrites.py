"""The rewrites that the field's families need: the reference computes the same before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gguf_tools.model.rope import FactorScaling, LinearScaling, Llama3Scaling, Rope, YarnScaling, frequencies
from gguf_tools.model.spec import Attention, GatedMLP, LayerSpec, Model, ModelSpec, Norm
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS, INTERLEAVED_PAIRS, RopePairs, pair_order
from gguf_tools.rewrites.scales import UNTIED_OUTPUT
from gguf_tools.targets.llama import rope_factors
from gguf_tools.tensors.base import InMemory
from tests.oracle import nmse, reference
from tests.random_model import filled

NORM = Norm(1e-6, 0.5)


def attention(**changes: object) -> Attention:
    """Four heads of 16, of which 12 dimensions turn, with every kind of tensor whose rows a rewrite must move."""
    base = Attention(
        heads=4,
        kv_heads=2,
        head_dim=16,
        rope=Rope(100.0, 12, "half"),
        bias=frozenset("qkvo"),
        qk_norm=NORM,
        norm_per_head=True,
        norm_gain=True,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def model(mixer: Attention, tied: bool = True) -> Model:
    """Two layers of random weights."""
    layer = LayerSpec(mixer, GatedMLP(24, frozenset({"up"})), NORM, NORM)
    spec = ModelSpec(vocab_size=288, hidden=32, context_length=64, layers=(layer, layer), output_norm=NORM, tied=tied)
    rng = np.random.default_rng(2)
    return filled(spec, lambda _, shape: InMemory((rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)))


@pytest.mark.parametrize(
    "change",
    [
        lambda mixer: mixer,
        lambda mixer: replace(mixer, norm_per_head=False),
        lambda mixer: replace(mixer, qk_norm=None, norm_per_head=False, norm_gain=False, bias=frozenset()),
        lambda mixer: replace(
            mixer, rope=replace(mixer.rope, dims=16, scaling=YarnScaling(factor=4.0, original_context=16))
        ),
        lambda mixer: replace(mixer, gated=True, window=5),
    ],
)
@pytest.mark.parametrize(("start", "rewrite"), [("half", INTERLEAVED_PAIRS), ("interleaved", HALF_PAIRS)])
def test_pairs_change_places(start: RopePairs, rewrite: Rewrite, change: Callable[[Attention], Attention]) -> None:
    mixer = change(attention())
    assert mixer.rope
    before = model(replace(mixer, rope=Rope(mixer.rope.theta, mixer.rope.dims, start, mixer.rope.scaling)))
    assert rewrite.applies(before.spec)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    assert after.parameters == before.parameters
    # Another order of the same additions: equal up to float64's rounding.
    assert nmse(reference(after), reference(before)) <= 1e-25


def test_pair_orders_undo_each_other() -> None:
    there, back = pair_order(12, 16, "interleaved"), pair_order(12, 16, "half")
    assert [there[i] for i in back] == list(range(16))
    assert there[:4] == [0, 6, 1, 7]
    assert there[12:] == [12, 13, 14, 15]


def test_untied_output() -> None:
    before = model(attention())
    assert UNTIED_OUTPUT.applies(before.spec)
    after = UNTIED_OUTPUT.apply(before)
    assert not UNTIED_OUTPUT.applies(after.spec)
    assert after.parameters - before.parameters == 288 * 32
    assert nmse(reference(after), reference(before)) == 0.0


def test_rope_factors_give_llama3_frequencies() -> None:
    rope = Rope(500000.0, 64, "half", Llama3Scaling(8.0, 1.0, 4.0, 8192))
    factors = rope_factors(rope)
    assert factors is not None
    lifted = replace(rope, scaling=FactorScaling(tuple(factors.array().astype(np.float64).tolist())))
    assert np.allclose(frequencies(lifted)[0], frequencies(rope)[0], rtol=1e-7, atol=0.0)
    assert factors.array()[0] == 1.0
    assert factors.array()[-1] == 8.0
    assert rope_factors(replace(rope, scaling=LinearScaling(2.0))) is None


def test_window_of_the_whole_sequence_is_full_attention() -> None:
    full, narrow = reference(model(attention())), reference(model(attention(window=3)))
    assert nmse(reference(model(attention(window=64))), full) == 0.0
    assert nmse(narrow, full) > 1e-3
    # Up to the window's length nothing is out of sight.
    assert all(np.array_equal(a[:3], b[:3]) for a, b in zip(narrow, full, strict=True))
