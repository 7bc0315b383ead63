"""What rewrites say of blends: `Rewrite.linear` and `keeps_row_angles` against blends done before and after them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import InputError
from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import MLP, GatedMLP, LayerSpec, Model, Norm, Router, SharedExpert
from gguf_tools.rewrites.delta import DENSE_AS_SHARED
from gguf_tools.rewrites.gates import EMPTY_SHARED_EXPERT
from gguf_tools.rewrites.registry import blend_passes, rewrites_by_name
from gguf_tools.tensors.base import Filled, InMemory
from surgery.model import operate_text
from tests.random_model import ATTENTION, DELTA, EXPERTS, layer, named, random_model, with_layer

SIGMOID = replace(EXPERTS, router=Router(top_k=1, score="sigmoid", selection_bias=True))
BIASED = replace(EXPERTS, router=Router(top_k=2, selection_bias=True))
PART = Rope(1e4, 4, "interleaved")
OWN_NORMS = replace(ATTENTION, norm_per_head=True)


def plain(spec: LayerSpec, **more: Any) -> Model:
    """Two layers that are alike but for their numbers."""
    return random_model([spec, spec], **more)


def uniform_bias() -> Model:
    made = plain(layer(feed_forward=BIASED))
    for n in (0, 1):
        made = with_layer(made, n, {"moe.router_bias": Filled((EXPERTS.experts,), 0.5 + n)})
    return made


def equal_heads() -> Model:
    made = plain(layer(OWN_NORMS))
    for n, one in enumerate(made.layers):
        norms = {role: one.tensors[role].array() for role in ("attn.q_norm", "attn.k_norm")}
        made = with_layer(
            made, n, {role: InMemory(np.tile(values[:1], (len(values), 1))) for role, values in norms.items()}
        )
    return made


def even_norms() -> Model:
    """q/k norms after rope, whose weights are equal in the two dimensions of each pair."""
    made = plain(layer(replace(ATTENTION, norm_after_rope=True)))
    for n, one in enumerate(made.layers):
        norms = {role: one.tensors[role].array() for role in ("attn.q_norm", "attn.k_norm")}
        made = with_layer(made, n, {role: InMemory(np.tile(values[:4], 2)) for role, values in norms.items()})
    return made


def normed(**changes: Any) -> LayerSpec:
    """A layer whose two norms differ from the plain one."""
    norm = replace(Norm(1e-6), **changes)
    return replace(layer(), mixer_norm=norm, ffn_norm=norm)


CENTRED = Norm(1e-6, centred=True)
MODELS = {
    "zero attention gate": plain(layer()),
    "zero shared-expert gate": plain(layer(feed_forward=replace(EXPERTS, shared=SharedExpert(20, gated=False)))),
    "empty shared expert": plain(layer(feed_forward=EXPERTS)),
    "output written out": plain(layer(), tied=True),
    "idle last layer": plain(layer()),
    "rope in interleaved pairs": plain(layer()),
    "rope in pairs half a head apart": plain(layer(replace(ATTENTION, rope=Rope(1e4, 8, "interleaved")))),
    "one q/k norm for all heads": equal_heads(),
    "q/k heads widened for a shared norm": plain(layer(OWN_NORMS)),
    "gain folded into the q/k norm": plain(layer(replace(OWN_NORMS, norm_gain=True))),
    "value scale folded into the values": plain(layer(replace(ATTENTION, value_scale=True))),
    "repeated values": plain(layer(replace(DELTA, key_dim=16))),
    "dense layers as shared experts": random_model([layer(), layer(), layer(feed_forward=EXPERTS)]),
    "embedding scale folded into the embeddings": plain(layer(), embedding_scale=2.0),
    "logit scale folded into the final norm": plain(layer(), logit_scale=0.5),
    "bias on the attention output": plain(layer(replace(ATTENTION, bias=frozenset("qkvo")))),
    "router bias left out": uniform_bias(),
    "router scale folded into the experts": plain(
        layer(feed_forward=replace(EXPERTS, router=replace(EXPERTS.router, scale=2.5)))
    ),
    "softmax router for one expert": plain(layer(feed_forward=SIGMOID)),
    "squared ReLU as SwiGLU": plain(layer(feed_forward=MLP(20, "relu2", frozenset({"up", "down"})))),
    "feed-forward without a gate as SwiGLU": plain(layer(feed_forward=MLP(20, "relu", frozenset({"up", "down"})))),
    "ReLU gate as SiLU gate": plain(layer(feed_forward=GatedMLP(20, frozenset({"gate", "up", "down"}), "relu"))),
    "ReLU as GELU": plain(layer(feed_forward=MLP(20, "relu", frozenset({"up", "down"})))),
    "rope on a part of a head by frequency factors": plain(layer(replace(ATTENTION, rope=PART))),
    "multipliers folded into the matrices": plain(replace(layer(), multipliers=(("attn.k", 0.3), ("ffn.down", 1.7)))),
    "residual scale folded into the output projections": plain(replace(layer(), residual_scale=0.22)),
    "attention scale folded into the queries": plain(layer(replace(ATTENTION, scale=0.4))),
    "squared ReLU as GeGLU": plain(layer(feed_forward=MLP(20, "relu2", frozenset({"up", "down"})))),
    "ReLU gate as GELU gate": plain(layer(feed_forward=GatedMLP(20, frozenset({"gate", "up", "down"}), "relu"))),
    "norms without weights": plain(normed(weighted=False)),
    "biases of norms folded into projections": plain(normed(bias=True)),
    "layer norms as RMS norms": plain(normed(centred=True), output_norm=CENTRED),
    "normed embeddings stored": plain(layer(), embedding_norm=Norm(1e-6)),
    "rope that rotates forwards": plain(
        layer(replace(ATTENTION, rope=Rope(1e4, 8, backwards=True), bias=frozenset("qkv")))
    ),
    "q/k norm before rope": even_norms(),
    "factors on the residual stream folded into the output projections": plain(
        replace(layer(), input_scale=1.1), embedding_norm=Norm(1e-6)
    ),
    "embeddings divided by √hidden": plain(layer(), tied=True),
    "norms after mixer and feed-forward that change nothing": plain(
        layer(feed_forward=GatedMLP(20, activation="gelu")), logit_softcap=15.0
    ),
}
CASES = [
    (name, n, method)
    for name, rewrites in rewrites_by_name().items()
    for n, _ in enumerate(rewrites)
    for method in ("linear", "slerp")
]


def test_there_is_a_model_for_each_rewrite() -> None:
    assert MODELS.keys() == rewrites_by_name().keys()


@pytest.mark.parametrize(("name", "n", "method"), CASES)
def test_a_rewrite_says_whether_blends_pass_through_it(name: str, n: int, method: str) -> None:
    model, rewrite = MODELS[name], rewrites_by_name()[name][n]
    assert rewrite.applies(model.spec)
    assert rewrite.suits(model.spec)
    assert rewrite.holds(model)
    blend = f"interpolate(0:1, 0.25, method={method}, replace=0)"
    before, after = rewrite.apply(operate_text(model, blend)), operate_text(rewrite.apply(model), blend)
    assert before.spec == after.spec
    others = named(after)
    same = all(np.allclose(t.array(), others[role].array(), rtol=1e-5, atol=1e-6) for role, t in named(before).items())
    passes = rewrite.linear and (rewrite.keeps_row_angles or method == "linear")
    # This one is linear itself, and does not pass because layers that cannot be blended look alike after it.
    assert same == (passes or name == DENSE_AS_SHARED.name)
    assert blend_passes(name, angles=method == "slerp") == passes


def test_after_dense_as_shared_layers_look_alike_that_were_not() -> None:
    model = MODELS[DENSE_AS_SHARED.name]
    with pytest.raises(InputError, match="dense feed-forward of width 20"):
        operate_text(model, "merge(1:2)")
    made = EMPTY_SHARED_EXPERT.apply(DENSE_AS_SHARED.apply(model))
    assert made.spec.layers[1] == made.spec.layers[2]
    assert len(operate_text(made, "merge(1:2)").layers) == 2


def test_a_name_that_is_not_known_does_not_pass() -> None:
    assert not blend_passes("heads folded by a later version")
