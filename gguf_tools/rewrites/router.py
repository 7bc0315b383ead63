"""Exact rewrites of a router's selection bias, where it has no effect or has an equivalent form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gguf_tools.model.spec import Layer, LayerSpec, Model, ModelSpec, MoE, Router
from gguf_tools.rewrites.base import EXPERTS, ROUTER, Rewrite, any_layer, map_layers
from gguf_tools.tensors.base import Filled
from gguf_tools.tensors.views import scaled


def _biased(spec: ModelSpec) -> bool:
    return any(
        isinstance(layer.feed_forward, MoE) and layer.feed_forward.router.selection_bias for layer in spec.layers
    )


def _makes_no_difference(model: Model) -> bool:
    """Whether in every layer the bias is the same for all experts, or all experts are selected."""
    for layer in model.layers:
        ffn = layer.spec.feed_forward
        if isinstance(ffn, MoE) and ffn.router.selection_bias and ffn.router.top_k < ffn.experts:
            bias = layer.tensors["moe.router_bias"].array()
            if not np.all(bias == bias[0]):
                return False
    return True


def _drop(model: Model) -> Model:
    def change(layer: Layer) -> Layer:
        ffn = layer.spec.feed_forward
        if not isinstance(ffn, MoE) or not ffn.router.selection_bias:
            return layer
        left = {name: tensor for name, tensor in layer.tensors.items() if name != "moe.router_bias"}
        router = replace(ffn.router, selection_bias=False)
        return Layer(replace(layer.spec, feed_forward=replace(ffn, router=router)), left)

    return map_layers(model, change)


def one_of_one(router: Router) -> bool:
    """Whether a single expert is selected, with weight 1 whatever its score."""
    return router.top_k == 1 and router.normalised


def _single(spec: ModelSpec) -> bool:
    routers = [layer.feed_forward.router for layer in spec.layers if isinstance(layer.feed_forward, MoE)]
    return _biased(spec) and all(map(one_of_one, routers)) and any(router.score == "sigmoid" for router in routers)


def with_softmax_and_bias(layer: Layer) -> Layer:
    """The layer with a softmax router and a selection bias, which is zero if the router had none."""
    ffn = layer.spec.feed_forward
    if not isinstance(ffn, MoE):
        return layer
    router = replace(ffn.router, score="softmax", selection_bias=True)
    bias = layer.tensors.get("moe.router_bias", Filled((ffn.experts,)))
    spec = replace(layer.spec, feed_forward=replace(ffn, router=router))
    return Layer(spec, {**layer.tensors, "moe.router_bias": bias})


def _scaled(layer: LayerSpec) -> bool:
    return isinstance(layer.feed_forward, MoE) and layer.feed_forward.router.scale != 1.0


def _fold_scale(model: Model) -> Model:
    def change(layer: Layer) -> Layer:
        ffn = layer.spec.feed_forward
        if not isinstance(ffn, MoE) or ffn.router.scale == 1.0:
            return layer
        spec = replace(layer.spec, feed_forward=replace(ffn, router=replace(ffn.router, scale=1.0)))
        return Layer(spec, {**layer.tensors, "moe.down": scaled(layer.tensors["moe.down"], ffn.router.scale)})

    return map_layers(model, change)


FOLDED_ROUTER_SCALE = Rewrite(
    name="router scale folded into the experts",
    why="what multiplies the routed experts' weights multiplies their down projections",
    applies=any_layer(_scaled),
    apply=_fold_scale,
    linear=True,
    keeps_row_angles=True,
    parts=(MoE, Router),
    expresses=EXPERTS | ROUTER | {"Router.score_bias", "Router.sum_eps"},
    removes=frozenset({"Router.scale"}),
)
UNIFORM_ROUTER_BIAS = Rewrite(
    name="router bias left out",
    why="it is the same for all experts, or all experts are selected, so the selection does not depend on it",
    applies=_biased,
    apply=_drop,
    holds=_makes_no_difference,
    linear=True,
    keeps_row_angles=True,
    parts=(Router,),
    expresses=ROUTER,
)
SINGLE_EXPERT = Rewrite(
    name="softmax router for one expert",
    why="only one expert is selected and its weight is 1 whatever the score, so softmax is equivalent to sigmoid",
    applies=_single,
    apply=lambda model: map_layers(model, with_softmax_and_bias),
    linear=True,
    keeps_row_angles=True,
    parts=(Router,),
    expresses=ROUTER,
)
