"""Each rewrite of heads, scales and routers leaves the reference's logits as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.model.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from gguf_tools.model.spec import (
    MLP,
    Attention,
    FeedForward,
    GatedMLP,
    Layer,
    LayerSpec,
    Model,
    ModelSpec,
    MoE,
    Norm,
    Router,
    Shape,
    SharedExpert,
)
from gguf_tools.rewrites.base import Rewrite, map_layers
from gguf_tools.rewrites.gates import EMPTY_UNGATED_EXPERT
from gguf_tools.rewrites.heads import FOLDED_GAIN, FOLDED_VALUE_SCALE, SHARED_HEAD_NORM, WIDENED_HEADS
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS, INTERLEAVED_PAIRS, WHOLE_ROPE
from gguf_tools.rewrites.router import SINGLE_EXPERT, UNIFORM_ROUTER_BIAS
from gguf_tools.rewrites.scales import (
    FOLDED_ATTENTION_SCALE,
    FOLDED_EMBEDDING_SCALE,
    FOLDED_LOGIT_SCALE,
    FOLDED_RESIDUAL_SCALE,
    UNTIED_OUTPUT,
)
from gguf_tools.tensors.base import InMemory, Tensor
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, filled, layer, random_model, with_layer
from tests.random_model import PROMPTS as RANDOM_PROMPTS

HIDDEN, VOCAB = 24, 288
NORM = Norm(1e-3)
"""An epsilon large enough to show where it is not carried over."""
OFFSET = Norm(1e-3, 1.0)
ROPE = Rope(10000.0, 4, "interleaved")
PROMPTS = ((5, 17, 250, 3, 3, 80, 111, 4, 12), (1,))
HEADS = Attention(heads=4, kv_heads=2, head_dim=8, rope=ROPE, bias=frozenset("qkv"), qk_norm=NORM)
PER_HEAD = replace(HEADS, norm_per_head=True)
SIGMOID = Router(top_k=2, score="sigmoid")


def model(mixer: Attention, ffn: FeedForward | None = None, *, norm: Norm = NORM, tied: bool = False) -> Model:
    """Two layers of random weights, far from neutral values."""
    layer = LayerSpec(mixer, ffn or GatedMLP(16), NORM, NORM)
    spec = ModelSpec(
        vocab_size=VOCAB, hidden=HIDDEN, context_length=64, layers=(layer, layer), output_norm=norm, tied=tied
    )
    rng = np.random.default_rng(3)

    def fill(role: str, shape: Shape) -> Tensor:
        scale = 1.0 if len(shape) == 1 or "norm" in role else 1.3 / shape[-1] ** 0.5
        return InMemory((rng.standard_normal(shape) * scale).astype(np.float32), (role,))

    return filled(spec, fill)


def residual(made: Model, scale: float) -> Model:
    layers = tuple(replace(layer, residual_scale=scale) for layer in made.spec.layers)
    return replace(made, spec=replace(made.spec, layers=layers))


def with_scales(made: Model, embedding: float = 1.0, logit: float = 1.0) -> Model:
    return replace(made, spec=replace(made.spec, embedding_scale=embedding, logit_scale=logit))


def with_values(made: Model, ending: str, values: list[float]) -> Model:
    """The model with the same values in every tensor of a layer whose role ends so, along its last axis."""

    def changed(layer: Layer) -> Layer:
        roles = [role for role in layer.tensors if role.endswith(ending)]
        assert roles
        shapes = {role: layer.tensors[role].shape for role in roles}
        new = {
            role: InMemory(np.broadcast_to(np.asarray(values, np.float32), shape).copy())
            for role, shape in shapes.items()
        }
        return Layer(layer.spec, {**layer.tensors, **new})

    return map_layers(made, changed)


def moe(router: Router, shared: SharedExpert | None = None) -> MoE:
    return MoE(4, 16, router, shared)


CASES: dict[str, tuple[Rewrite, Model]] = {
    "gain, per head": (FOLDED_GAIN, model(replace(PER_HEAD, norm_gain=True))),
    "gain, one norm": (FOLDED_GAIN, model(replace(HEADS, norm_gain=True))),
    "gain, offset": (FOLDED_GAIN, model(replace(PER_HEAD, norm_gain=True, qk_norm=OFFSET))),
    "widened": (WIDENED_HEADS, model(PER_HEAD)),
    "widened, offset": (WIDENED_HEADS, model(replace(PER_HEAD, qk_norm=OFFSET))),
    "widened, one kv head": (WIDENED_HEADS, model(replace(PER_HEAD, kv_heads=1))),
    "widened, whole rope": (WIDENED_HEADS, model(replace(PER_HEAD, rope=Rope(100.0, 8)))),
    "widened, zero weights": (WIDENED_HEADS, with_values(model(PER_HEAD), "q_norm", [0.0] * 4 + [1.5] * 4)),
    "one norm for all": (
        SHARED_HEAD_NORM,
        with_values(with_values(model(PER_HEAD), "q_norm", [1.5, 0.5] * 4), "k_norm", [0.25, -0.5] * 4),
    ),
    "value scale": (FOLDED_VALUE_SCALE, model(replace(HEADS, value_scale=True))),
    "value scale, narrow values": (FOLDED_VALUE_SCALE, model(replace(HEADS, value_scale=True, value_dim=5))),
    "half pairs": (HALF_PAIRS, model(PER_HEAD)),
    "interleaved pairs": (INTERLEAVED_PAIRS, model(replace(PER_HEAD, rope=Rope(100.0, 6)))),
    "embedding scale": (FOLDED_EMBEDDING_SCALE, with_scales(model(HEADS), embedding=4.9)),
    "embedding scale, tied": (FOLDED_EMBEDDING_SCALE, with_scales(model(HEADS, tied=True), embedding=4.9)),
    "logit scale": (FOLDED_LOGIT_SCALE, with_scales(model(HEADS), logit=0.37)),
    "logit scale, offset": (FOLDED_LOGIT_SCALE, with_scales(model(HEADS, norm=OFFSET, tied=True), logit=0.37)),
    "attention scale": (FOLDED_ATTENTION_SCALE, model(replace(HEADS, qk_norm=None, scale=0.4))),
    "attention scale, norm": (FOLDED_ATTENTION_SCALE, model(replace(HEADS, qk_norm=OFFSET, scale=0.4))),
    "attention scale, norm of each head": (FOLDED_ATTENTION_SCALE, model(replace(PER_HEAD, scale=0.4))),
    "attention scale, gain": (FOLDED_ATTENTION_SCALE, model(replace(PER_HEAD, norm_gain=True, scale=0.4))),
    "attention scale, no rope": (FOLDED_ATTENTION_SCALE, model(replace(HEADS, rope=None, scale=0.4))),
    "residual scale": (FOLDED_RESIDUAL_SCALE, residual(model(replace(HEADS, bias=frozenset("qkvo"))), 0.22)),
    "residual scale, biases": (
        FOLDED_RESIDUAL_SCALE,
        residual(model(HEADS, MLP(16, "gelu", frozenset({"up", "down"}))), 0.22),
    ),
    "residual scale, experts": (
        FOLDED_RESIDUAL_SCALE,
        residual(model(HEADS, moe(SIGMOID, SharedExpert(16, gated=True))), 0.22),
    ),
    "part of a head": (WHOLE_ROPE, model(HEADS)),
    "part of a head, llama3": (
        WHOLE_ROPE,
        model(replace(HEADS, rope=replace(ROPE, theta=100.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 16)))),
    ),
    "part of a head, linear": (WHOLE_ROPE, model(replace(HEADS, rope=replace(ROPE, scaling=LinearScaling(2.0))))),
    "untied": (UNTIED_OUTPUT, model(HEADS, tied=True)),
    "uniform bias": (
        UNIFORM_ROUTER_BIAS,
        with_values(model(HEADS, moe(replace(SIGMOID, selection_bias=True))), "router_bias", [0.7] * 4),
    ),
    "all experts": (UNIFORM_ROUTER_BIAS, model(HEADS, moe(Router(top_k=4, score="sigmoid", selection_bias=True)))),
    "one expert": (SINGLE_EXPERT, model(HEADS, moe(Router(top_k=1, score="sigmoid", selection_bias=True)))),
    "no shared expert": (EMPTY_UNGATED_EXPERT, model(HEADS, moe(SIGMOID))),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_stay(name: str) -> None:
    rewrite, before = CASES[name]
    assert rewrite.applies(before.spec)
    assert rewrite.holds(before)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) < 1e-13


def test_a_part_of_a_head_needs_interleaved_pairs_and_no_yarn() -> None:
    assert not WHOLE_ROPE.holds(model(replace(HEADS, rope=replace(ROPE, pairs="half"))))
    yarn = YarnScaling(factor=2.0, original_context=16)
    assert not WHOLE_ROPE.applies(model(replace(HEADS, rope=replace(ROPE, scaling=yarn))).spec)


def test_heads_that_differ_share_no_norm() -> None:
    assert not SHARED_HEAD_NORM.holds(model(PER_HEAD))


def test_a_bias_that_differs_is_not_left_out() -> None:
    assert not UNIFORM_ROUTER_BIAS.holds(model(HEADS, moe(replace(SIGMOID, selection_bias=True))))


def test_more_than_one_expert_needs_its_weights() -> None:
    assert not SINGLE_EXPERT.applies(model(HEADS, moe(replace(SIGMOID, selection_bias=True))).spec)


def test_widened_heads_keep_their_values() -> None:
    after = WIDENED_HEADS.apply(model(PER_HEAD))
    mixer = after.spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    assert (mixer.head_dim, mixer.value_size, mixer.norm_per_head) == (16, 8, False)
    assert after.spec.cache_width == model(PER_HEAD).spec.cache_width * 3 // 2


def mixed(**changes: Any) -> Model:
    """Layers with norms of each head, one without, and one of another mixer; the heads' norm weights are equal."""
    own = random_model([layer(), layer(replace(ATTENTION, norm_per_head=True, **changes)), layer(DELTA)])
    for role in ("attn.q_norm", "attn.k_norm"):
        weight = own.layers[1].tensors[role].array()
        own = with_layer(own, 1, {role: InMemory(np.tile(weight[:1], (len(weight), 1)), ("stored",))})
    return own


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equal_weights_of_heads_are_one(kv_heads: int) -> None:
    before = mixed(kv_heads=kv_heads)
    assert SHARED_HEAD_NORM.holds(before)
    after = SHARED_HEAD_NORM.apply(before)
    assert nmse(reference(after, RANDOM_PROMPTS), reference(before, RANDOM_PROMPTS)) == 0.0
    assert after.layers[1].tensors["attn.k_norm"].sources == ("stored",)
    for n in (0, 2):
        assert after.layers[n].tensors == before.layers[n].tensors
    for role in ("attn.q_norm", "attn.k_norm"):
        values = before.layers[1].tensors[role].array()
        for head in range(len(values)) if len(values) > 1 else ():
            other = values.copy()
            other[head, 3] += 1
            assert not SHARED_HEAD_NORM.holds(with_layer(before, 1, {role: InMemory(other)}))


def test_a_norm_without_which_there_is_nothing_to_fold() -> None:
    for rewrite, field in ((FOLDED_GAIN, "norm_gain"), (WIDENED_HEADS, "norm_per_head")):
        given: dict[str, Any] = {field: True}
        spec = replace(ATTENTION, qk_norm=None, **given)
        with pytest.raises(ValueError, match=f"{field} is set without qk_norm"):
            rewrite.apply(random_model([layer(spec)]))


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("bias", ["", "qkv"])
def test_widened_heads_have_zeros_where_a_weight_is_the_largest(kv_heads: int, bias: str) -> None:
    """W becomes √2 · [w/c · W; √(1 - (w/c)²) · W], and the norm's weights c, 0 for queries and c/√2, 0 for keys."""
    mixer = replace(ATTENTION, norm_per_head=True, kv_heads=kv_heads, bias=frozenset(bias))
    before = random_model([layer(mixer)])
    after = WIDENED_HEADS.apply(before)
    assert nmse(reference(after, RANDOM_PROMPTS), reference(before, RANDOM_PROMPTS)) <= 1e-12
    old, new = before.layers[0].tensors, after.layers[0].tensors
    for name, heads, factor in (("q", 4, 1.0), ("k", kv_heads, 0.5**0.5)):
        weight = old[f"attn.{name}_norm"].array().astype(np.float64)
        largest = np.abs(weight).max(axis=0)
        np.testing.assert_allclose(new[f"attn.{name}_norm"].array(), [*largest * factor, *[0.0] * 8], rtol=1e-6)
        share = weight / largest
        rows = old[f"attn.{name}"].array().astype(np.float64).reshape(heads, 8, -1)
        wanted = np.concatenate([rows * share[..., None], rows * np.sqrt(1 - share**2)[..., None]], axis=1)
        np.testing.assert_allclose(new[f"attn.{name}"].array(), 2**0.5 * wanted.reshape(16 * heads, -1), atol=1e-6)
    assert new["attn.v"] is old["attn.v"]
