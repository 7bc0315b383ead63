"""Each rewrite in a model whose layers differ: those without the feature are left, and the logits stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gguf_tools.model.rope import LinearScaling, Rope
from gguf_tools.model.spec import MLP, GatedMLP, LayerSpec, Mamba2, Norm, SharedExpert, ShortConv
from gguf_tools.rewrites.registry import rewrites_by_name
from tests.oracle import nmse, reference
from tests.random_model import ATTENTION, DELTA, EXPERTS, HIDDEN, PROMPTS, layer, random_model

TURNED = Rope(1e4, 8, "interleaved")
BACK = Rope(1e4, 4, backwards=True)
SPACE = Mamba2(heads=4, head_dim=6, groups=2, state=5, kernel=3, norm=Norm(1e-6))
NORMED = Norm(1e-6, 0.5, bias=True)
UP, DOWN = frozenset({"up", "down"}), frozenset({"gate", "up", "down"})
EXACT, ROUNDED = 1e-24, 1e-12


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Layers, of which the rewrite changes those at `changed`; fields outside the layers, and the bound on the error."""

    layers: Sequence[LayerSpec]
    changed: Sequence[int]
    outside: dict[str, Any] = field(default_factory=dict)
    bound: float = EXACT


def turned(rope: Rope | None, **more: Any) -> LayerSpec:
    return layer(replace(ATTENTION, rope=rope, **more))


def scored(scale: float | None, **more: Any) -> LayerSpec:
    return layer(replace(ATTENTION, scale=scale, **more))


def normed(norm: Norm, **more: Any) -> LayerSpec:
    return replace(layer(**more), mixer_norm=norm, ffn_norm=norm)


MIXED: dict[str, Mixed] = {
    "zero attention gate": Mixed(
        layers=[
            layer(),
            layer(DELTA),
            layer(replace(ATTENTION, gated=True)),
            layer(replace(ATTENTION, bias=frozenset("q"))),
        ],
        changed=[0, 3],
    ),
    "zero shared-expert gate": Mixed(
        layers=[
            layer(),
            layer(feed_forward=replace(EXPERTS, shared=SharedExpert(20, gated=False))),
            layer(feed_forward=EXPERTS),
            layer(feed_forward=replace(EXPERTS, shared=SharedExpert(20, gated=True))),
        ],
        changed=[1],
    ),
    "empty shared expert": Mixed(
        layers=[
            layer(feed_forward=EXPERTS),
            layer(),
            layer(feed_forward=replace(EXPERTS, shared=SharedExpert(20, gated=True))),
        ],
        changed=[0],
    ),
    "rope in interleaved pairs": Mixed(layers=[layer(), layer(DELTA), turned(None), turned(TURNED)], changed=[0]),
    "rope in pairs half a head apart": Mixed(layers=[layer(), layer(DELTA), turned(None), turned(TURNED)], changed=[3]),
    "rope on a part of a head by frequency factors": Mixed(
        layers=[
            turned(replace(TURNED, dims=6, scaling=LinearScaling(2.0))),
            turned(TURNED),
            turned(None),
            layer(DELTA),
            turned(replace(TURNED, dims=2)),
        ],
        changed=[0, 4],
    ),
    "rope that rotates forwards": Mixed(
        layers=[turned(BACK), layer(DELTA), turned(None), layer(), turned(replace(BACK, pairs="interleaved"))],
        changed=[0, 4],
    ),
    "gain folded into the q/k norm": Mixed(
        layers=[
            layer(replace(ATTENTION, norm_gain=True, qk_norm=Norm(1e-6, 0.5))),
            layer(),
            layer(DELTA),
            layer(replace(ATTENTION, qk_norm=None)),
        ],
        changed=[0],
        bound=ROUNDED,
    ),
    "q/k heads widened for a shared norm": Mixed(
        layers=[layer(), layer(DELTA), layer(replace(ATTENTION, norm_per_head=True, bias=frozenset("qk")))],
        changed=[2],
        bound=ROUNDED,
    ),
    "value scale folded into the values": Mixed(
        layers=[layer(), layer(DELTA), layer(replace(ATTENTION, value_scale=True, bias=frozenset("v")))],
        changed=[2],
        bound=ROUNDED,
    ),
    "repeated values": Mixed(
        layers=[
            layer(),
            layer(replace(DELTA, key_dim=16)),
            layer(DELTA),
            layer(replace(DELTA, key_dim=24, norm=Norm(1e-6, 0.5))),
            layer(replace(DELTA, key_dim=12)),
            layer(replace(DELTA, key_dim=4)),
        ],
        changed=[1, 3],
    ),
    "dense layers as shared experts": Mixed(
        layers=[
            layer(),
            layer(feed_forward=replace(EXPERTS, shared=SharedExpert(8, gated=True))),
            layer(DELTA, EXPERTS),
        ],
        changed=[0],
    ),
    "multipliers folded into the matrices": Mixed(
        layers=[
            layer(),
            replace(layer(), multipliers=(("attn.k", 0.3), ("ffn.down", 1.7))),
            replace(layer(DELTA), multipliers=(("delta.o", 2.0),)),
        ],
        changed=[1, 2],
        bound=ROUNDED,
    ),
    "residual scale folded into the output projections": Mixed(
        layers=[
            replace(layer(), residual_scale=2.0),
            layer(),
            replace(layer(DELTA, MLP(20, "gelu", UP)), residual_scale=0.5),
            replace(layer(SPACE, EXPERTS), residual_scale=-0.5),
        ],
        changed=[0, 2, 3],
    ),
    "attention scale folded into the queries": Mixed(
        layers=[
            scored(0.4),
            layer(),
            layer(DELTA),
            scored(0.5, qk_norm=None, bias=frozenset("qk")),
            scored(0.5, norm_gain=True),
            scored(8**-0.5, qk_norm=Norm(1e-6, 0.5)),
            scored(0.3, qk_norm=Norm(1e-6, 0.5)),
        ],
        changed=[0, 3, 4, 6],
        bound=ROUNDED,
    ),
    "squared ReLU as SwiGLU": Mixed(
        layers=[layer(), layer(feed_forward=MLP(20, "relu2", UP)), layer(feed_forward=MLP(20, "relu2"))],
        changed=[1, 2],
        bound=1e-10,
    ),
    "feed-forward without a gate as SwiGLU": Mixed(
        layers=[layer(), layer(feed_forward=MLP(20, "relu", UP)), layer(feed_forward=MLP(20, "silu"))],
        changed=[1, 2],
        bound=1e-10,
    ),
    "ReLU gate as SiLU gate": Mixed(
        layers=[layer(), layer(feed_forward=GatedMLP(20, DOWN, "relu")), layer(feed_forward=GatedMLP(20, UP, "relu"))],
        changed=[1, 2],
        bound=1e-10,
    ),
    "norms without weights": Mixed(
        layers=[
            layer(),
            replace(layer(), ffn_norm=Norm(1e-6, weighted=False)),
            layer(replace(ATTENTION, qk_norm=Norm(1e-6, weighted=False))),
            replace(layer(), mixer_post_norm=Norm(1e-6, weighted=False, bias=True)),
            layer(replace(ATTENTION, qk_norm=None)),
        ],
        changed=[1, 2, 3],
    ),
    "biases of norms folded into projections": Mixed(
        layers=[
            layer(),
            normed(NORMED),
            replace(layer(), ffn_norm=NORMED),
            replace(normed(NORMED, feed_forward=MLP(20, "silu", UP)), ffn_norm=None, parallel=True),
            replace(layer(replace(ATTENTION, gated=True, bias=frozenset("qo"))), mixer_norm=NORMED),
            replace(layer(DELTA), ffn_norm=NORMED),
        ],
        changed=[1, 2, 3, 4, 5],
        bound=ROUNDED,
    ),
    "idle last layer": Mixed(layers=[layer(DELTA), layer(DELTA, offset=0.5)], changed=[]),
    "output written out": Mixed(layers=[layer()], changed=[], outside={"tied": True}),
    "embedding scale folded into the embeddings": Mixed(
        layers=[layer()], changed=[], outside={"tied": True, "embedding_scale": 2.0}
    ),
    "normed embeddings stored": Mixed(
        layers=[layer()],
        changed=[],
        outside={"tied": True, "embedding_scale": 2.0, "embedding_norm": Norm(1e-2, centred=True, weighted=False)},
        bound=ROUNDED,
    ),
    "embeddings divided by √hidden": Mixed(
        layers=[layer()],
        changed=[],
        outside={"tied": True, "embedding_scale": 3.0, "output_norm": Norm(1e-3, 0.25, weighted=False, bias=True)},
        bound=ROUNDED,
    ),
    "logit scale folded into the final norm": Mixed(
        layers=[layer()],
        changed=[],
        outside={"logit_scale": 2.0, "output_bias": True, "output_norm": Norm(1e-3, weighted=False, bias=True)},
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_layers_without_the_feature_are_left(name: str) -> None:
    mixed, rewrite = MIXED[name], rewrites_by_name()[name][0]
    before = random_model(mixed.layers, **mixed.outside)
    assert rewrite.applies(before.spec)
    assert rewrite.suits(before.spec)
    assert rewrite.holds(before)
    after = rewrite.apply(before)
    assert not rewrite.applies(after.spec)
    assert nmse(reference(after, PROMPTS), reference(before, PROMPTS)) <= mixed.bound
    pairs = list(zip(before.layers, after.layers, strict=False))
    assert [n for n, (old, new) in enumerate(pairs) if old.spec != new.spec] == list(mixed.changed)
    for n in {*range(len(pairs))} - {*mixed.changed}:
        old, new = pairs[n]
        assert new.tensors.keys() == old.tensors.keys()
        assert all(new.tensors[role] is tensor for role, tensor in old.tensors.items())


NEUTRAL: dict[str, list[tuple[Sequence[LayerSpec], dict[str, Any]]]] = {
    "embedding scale folded into the embeddings": [([layer()], {"tied": True})],
    "logit scale folded into the final norm": [([layer()], {})],
    "multipliers folded into the matrices": [([layer()], {})],
    "residual scale folded into the output projections": [([layer(), layer(DELTA)], {})],
    "attention scale folded into the queries": [([layer(), layer(DELTA), scored(8**-0.5)], {})],
    "output written out": [([layer()], {"tied": False})],
    "zero attention gate": [([layer(DELTA)], {})],
    "gain folded into the q/k norm": [([layer(replace(ATTENTION, norm_per_head=True)), layer(DELTA)], {})],
    "one q/k norm for all heads": [
        ([layer(), layer(DELTA)], {}),
        ([layer(replace(ATTENTION, norm_per_head=True, norm_gain=True))], {}),
        ([layer(replace(ATTENTION, norm_gain=True))], {}),
    ],
    "q/k heads widened for a shared norm": [
        ([layer(), layer(DELTA)], {}),
        ([layer(replace(ATTENTION, norm_per_head=True, norm_gain=True))], {}),
    ],
    "value scale folded into the values": [([layer(), layer(DELTA)], {})],
    "rope in interleaved pairs": [([turned(TURNED), turned(None), layer(DELTA)], {})],
    "rope in pairs half a head apart": [([layer(), turned(None), layer(DELTA)], {})],
    "rope on a part of a head by frequency factors": [([layer(), turned(None), layer(DELTA)], {})],
    "rope that rotates forwards": [
        ([layer(), turned(None), layer(DELTA)], {}),
        ([turned(BACK, qk_norm=Norm(1e-6, centred=True))], {}),
        ([turned(BACK, qk_norm=Norm(1e-6, bias=True))], {}),
    ],
    "q/k norm before rope": [
        ([layer(), layer(DELTA)], {}),
        ([layer(replace(ATTENTION, qk_norm=None, norm_after_rope=True))], {}),
        ([layer(replace(ATTENTION, norm_after_rope=True, norm_whole=True))], {}),
        ([layer(replace(ATTENTION, norm_after_rope=True, norm_gain=True))], {}),
        ([layer(replace(ATTENTION, norm_after_rope=True, qk_norm=Norm(1e-6, centred=True)))], {}),
        ([layer(replace(ATTENTION, norm_after_rope=True, qk_norm=Norm(1e-6, bias=True)))], {}),
    ],
    "repeated values": [
        ([layer()], {}),
        ([layer(DELTA), *(layer(replace(DELTA, key_dim=size)) for size in (4, 12, 20))], {}),
    ],
    "dense layers as shared experts": [
        ([layer()], {}),
        ([layer(feed_forward=EXPERTS)], {}),
        ([layer(feed_forward=EXPERTS), layer(feed_forward=GatedMLP(20, UP))], {}),
        ([layer(feed_forward=EXPERTS), layer(), layer(feed_forward=MLP(20, "silu"))], {}),
    ],
    "idle last layer": [([layer(), layer(DELTA)], {})],
    "squared ReLU as SwiGLU": [([layer(), layer(feed_forward=MLP(20, "relu")), layer(feed_forward=EXPERTS)], {})],
    "feed-forward without a gate as SwiGLU": [([layer(), layer(feed_forward=MLP(20, "relu2"))], {})],
    "ReLU gate as SiLU gate": [([layer(), layer(feed_forward=MLP(20, "relu"))], {})],
    "ReLU as GELU": [([layer(feed_forward=GatedMLP(20, activation="relu")), layer(feed_forward=MLP(20, "silu"))], {})],
    "norms without weights": [([layer(), layer(DELTA)], {})],
    "biases of norms folded into projections": [
        ([layer()], {}),
        ([normed(NORMED, mixer=DELTA)], {}),
        ([normed(NORMED, feed_forward=EXPERTS)], {}),
        ([replace(layer(feed_forward=EXPERTS), mixer_norm=NORMED, ffn_norm=None, parallel=True)], {}),
        ([replace(layer(), mixer_post_norm=NORMED), normed(NORMED)], {}),
        ([replace(layer(), ffn_post_norm=NORMED)], {"output_norm": NORMED}),
        ([replace(layer(SPACE), mixer_norm=NORMED)], {}),
    ],
    "normed embeddings stored": [([layer()], {})],
    "embeddings divided by √hidden": [
        ([layer()], {"embedding_scale": math.sqrt(HIDDEN)}),
        ([layer()], {"embedding_scale": math.sqrt(HIDDEN) * (1 + 5e-8)}),
    ],
}
"""Models that a rewrite does not change, each for another reason."""


@pytest.mark.parametrize("name", NEUTRAL)
def test_it_does_not_apply(name: str) -> None:
    for rewrite in rewrites_by_name()[name]:
        for layers, outside in NEUTRAL[name]:
            assert not rewrite.applies(random_model(layers, **outside).spec)


def test_a_scale_that_is_almost_the_root_is_not_it() -> None:
    (rewrite,) = rewrites_by_name()["embeddings divided by √hidden"]
    for factor in (1 + 2e-7, 1 - 2e-7, 1.0 / math.sqrt(HIDDEN)):
        assert rewrite.applies(random_model([layer()], embedding_scale=math.sqrt(HIDDEN) * factor).spec)


def test_layers_that_a_convolution_mixes_are_left_to_the_target() -> None:
    """No rewrite of what a layer adds is tested with it but for that of multipliers."""
    spec = random_model([replace(layer(ShortConv(3)), residual_scale=0.5, input_scale=0.5)]).spec
    for name in ("residual scale folded into the output projections", "layer norms as RMS norms"):
        assert not any(rewrite.suits(spec) for rewrite in rewrites_by_name()[name])
