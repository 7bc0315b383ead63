"""The exact rewrites for hybrids and output biases: the reference in float64 before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import UnsupportedError
from gguf_tools.families.registry import load_model
from gguf_tools.families.tiny.hybrid import Shape, write
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, DeltaNet, LayerSpec, Model, Norm, SharedExpert
from gguf_tools.rewrites import delta, output_bias
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.targets.planner import plan
from gguf_tools.tensors.base import InMemory
from gguf_tools.tensors.views import Columns, take_columns
from tests.oracle import nmse, reference
from tests.random_model import DELTA, EXPERTS, MLP, layer, random_model, with_layer

PROMPTS = [(3, 1, 4, 1, 5, 9, 2, 6), (7,)]
EXACT = 1e-24
"""Only zeros, copies and powers of two: what is left is the order of float64 sums."""
ROUNDED = 1e-13
"""√(W/D) is rounded, and the weights it multiplies are float32."""


def model(folder: Path, shape: Shape) -> Model:
    """A random hybrid of this shape."""
    write(folder, shape, 5)
    return load_model(folder)


def unchanged(before: Model, after: Model) -> float:
    """NMSE between the two models' logits."""
    return nmse(reference(after, PROMPTS), reference(before, PROMPTS))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", ["o", "qkvo"])
@pytest.mark.parametrize("way", [output_bias.by_heads, output_bias.by_width])
def test_output_bias(tmp_path: Path, way: Callable[[Model], Model], bias: str, gated: bool) -> None:
    before = model(tmp_path, Shape(layers="AD", gated=gated, bias=bias, kv_heads=2))
    after = way(before)
    assert not output_bias.applies(after.spec)
    assert unchanged(before, after) <= (EXACT if way is output_bias.by_heads else ROUNDED)


def test_layers_without_an_output_bias_follow_those_that_have_one(tmp_path: Path) -> None:
    whole = model(tmp_path, Shape(layers="AA", bias="qkvo"))
    first = whole.spec.layers[0]
    assert isinstance(first.mixer, Attention)
    plain = replace(first, mixer=replace(first.mixer, bias=frozenset("qkv")))
    before = with_layer(whole, 0, {}, plain)
    for way in (output_bias.by_heads, output_bias.by_width):
        after = way(before)
        assert len({layer.mixer.head_dim for layer in after.spec.layers if isinstance(layer.mixer, Attention)}) == 1
        assert unchanged(before, after) <= ROUNDED


@pytest.mark.parametrize(
    ("heads", "head_dim", "kv_heads", "widened"),
    [(8, 32, 1, False), (2, 64, 1, True), (8, 32, 2, False), (4, 128, 2, True)],
)
def test_the_cheaper_way_is_taken(tmp_path: Path, heads: int, head_dim: int, kv_heads: int, widened: bool) -> None:
    before = model(tmp_path, Shape(layers="A", heads=heads, head_dim=head_dim, kv_heads=kv_heads, bias="o"))
    costs = [way(before).parameters - before.parameters for way in (output_bias.by_heads, output_bias.by_width)]
    chosen = output_bias.cheapest(before)
    assert chosen.parameters - before.parameters <= min(costs) + head_dim
    mixer = chosen.spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    assert (mixer.head_dim > head_dim) == widened


@pytest.mark.parametrize(
    ("rewrite", "shape"),
    [
        (delta.REPEATED_VALUES, Shape(layers="DA", key_dim=48)),
        (delta.DENSE_AS_SHARED, Shape(layers="dAa", experts=4, top_k=2)),
        (delta.IDLE_LAYER, Shape(layers="DD")),
        (delta.IDLE_LAYER, Shape(layers="aa")),
    ],
)
def test_a_rewrite_changes_nothing(tmp_path: Path, rewrite: Rewrite, shape: Shape) -> None:
    before = model(tmp_path, shape)
    assert rewrite.applies(before.spec)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    # A norm over 48 copies sums in another order than one over 16.
    assert unchanged(before, after) <= EXACT


def test_the_plan_tells_what_a_rewrite_costs(tmp_path: Path) -> None:
    before = model(tmp_path, Shape(layers="DA", bias="qkvo", kv_heads=2))
    made = plan(before)
    assert made.extra_parameters == made.model.parameters - before.parameters > 0
    assert (before.spec.cache_width, made.extra_cache) == (64, 32)


@pytest.mark.parametrize("key_dim", [16, 48])
def test_values_that_do_not_fill_a_key_are_refused(tmp_path: Path, key_dim: int) -> None:
    found = model(tmp_path, Shape(layers="DA", key_dim=key_dim, value_dim=32))
    with pytest.raises(
        UnsupportedError,
        match=f"qwen3next does not support linear attention with key heads of {key_dim} and value heads of 32 dimensions",
    ):
        plan(found)


def test_columns_are_numpy_s() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((5, width)).astype(np.float32) for width in (4, 3))
    index = [6, 0, 0, 3, 5]
    wanted = np.concatenate([left, right], axis=1)[:, index]
    found = Columns((InMemory(left), InMemory(right)), np.asarray(index))
    assert np.array_equal(found.array(), wanted)
    flat = wanted.reshape(-1)
    assert all(np.array_equal(found.flat(a, b), flat[a:b]) for a in range(26) for b in range(a, 26))
    assert np.array_equal(Columns((InMemory(left), InMemory(right)), np.arange(7)).array()[:, index], wanted)
    assert np.array_equal(take_columns(InMemory(left), [2, 1]).array(), left[:, [2, 1]])
    with pytest.raises(ValueError, match="side by side"):
        Columns((InMemory(left), InMemory(right[:4])), np.arange(7))


@pytest.mark.parametrize(("times", "key_dim"), [(1, 8), (2, 16), (3, 24)])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_values_are_repeated_as_often_as_they_fit_a_key(times: int, key_dim: int, offset: float) -> None:
    before = random_model([layer(), layer(replace(DELTA, key_dim=key_dim, norm=Norm(1e-6, offset)))])
    assert delta.REPEATED_VALUES.applies(before.spec) == (times > 1)
    after = delta.REPEATED_VALUES.apply(before)
    assert unchanged(before, after) <= EXACT
    old, new = before.layers[1].tensors, after.layers[1].tensors
    values = old["delta.v"].array().reshape(4, 8, -1)
    assert np.array_equal(new["delta.v"].array(), np.tile(values, (1, times, 1)).reshape(4 * key_dim, -1))
    z = new["delta.z"].array().reshape(4, key_dim, -1)
    assert np.array_equal(z[:, :8], old["delta.z"].array().reshape(4, 8, -1))
    assert not np.any(z[:, 8:])
    o = new["delta.o"].array().reshape(-1, 4, key_dim)
    assert np.array_equal(o[..., :8], old["delta.o"].array().reshape(-1, 4, 8))
    assert not np.any(o[..., 8:])
    assert new["delta.norm"].array().tolist() == [*old["delta.norm"].array().tolist(), *[-offset] * (key_dim - 8)]


@pytest.mark.parametrize(("layers", "mixer"), [([layer()] * 2, DeltaNet), ([layer(DELTA)] * 2, Attention)])
def test_the_idle_layer(layers: list[LayerSpec], mixer: type) -> None:
    """One head of 32 dimensions, a kernel of 4, rope on the whole head, and zeros; with the norms of the last layer."""
    last = replace(layers[-1], mixer_norm=Norm(1e-3, 0.5), feed_forward=EXPERTS)
    before = random_model([layers[0], last])
    after = delta.IDLE_LAYER.apply(before)
    assert unchanged(before, after) == 0.0
    *others, idle = after.spec.layers
    assert others == list(before.spec.layers)
    norm = Norm(1e-3, 0.5)
    wanted: dict[type, Any] = {
        DeltaNet: DeltaNet(key_heads=1, value_heads=1, key_dim=32, value_dim=32, kernel=4, norm=norm, l2_eps=1e-3),
        Attention: Attention(heads=1, kv_heads=1, head_dim=32, rope=Rope(10000.0, 32), qk_norm=norm),
    }
    assert idle == replace(last, mixer=wanted[mixer])
    assert not any(np.any(tensor.array()) for tensor in after.layers[-1].tensors.values())


def test_an_idle_layer_after_one_without_a_norm_has_that_of_the_output() -> None:
    before = random_model([replace(layer(), mixer_norm=None)], output_norm=Norm(1e-3))
    idle = delta.IDLE_LAYER.apply(before).spec.layers[-1].mixer
    assert isinstance(idle, DeltaNet)
    assert (idle.norm, idle.l2_eps) == (Norm(1e-3), 1e-3)


def test_a_dense_layer_becomes_the_first_shape_of_experts() -> None:
    shared = replace(EXPERTS, experts=6, shared=SharedExpert(8, gated=True))
    before = random_model([layer(), layer(feed_forward=shared), layer(DELTA, EXPERTS)])
    after = delta.DENSE_AS_SHARED.apply(before)
    assert unchanged(before, after) <= EXACT
    assert after.spec.layers[0].feed_forward == replace(shared, shared=SharedExpert(MLP.width, gated=True))
    old, new = before.layers[0].tensors, after.layers[0].tensors
    for name in ("gate", "up"):
        assert new[f"shared.{name}"] is old[f"ffn.{name}"]
    assert np.array_equal(new["shared.down"].array(), 2 * old["ffn.down"].array())
    for role in ("shared.sigmoid", "moe.router", "moe.gate", "moe.up", "moe.down"):
        assert not np.any(new[role].array())
    assert not [role for role in new if role.startswith("ffn.")]
