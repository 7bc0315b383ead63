"""Exact algebraic rewrites: a Model into another Model that computes the same function, in a form a target has.

Each is proved by its own test, which runs the reference before and after. All factors are powers of two, or the rewrite
says what it rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from gguf_tools.spec import Attention, LayerSpec, Model, ModelSpec, MoE, SharedExpert
from gguf_tools.tensors import Filled, Reshaped, Tensor, scaled, take

LayerTensors = dict[str, Tensor]


@dataclass(frozen=True)
class Rewrite:
    """A named rewrite; `applies` says whether the spec has what it removes.

    `holds` says whether the weights permit it, where the spec alone cannot tell; it reads small tensors only.
    """

    name: str
    why: str
    applies: Callable[[ModelSpec], bool]
    apply: Callable[[Model], Model]
    holds: Callable[[Model], bool] = lambda _: True


def map_layers(model: Model, change: Callable[[LayerSpec, LayerTensors], tuple[LayerSpec, LayerTensors]]) -> Model:
    """The model with each layer, and its tensors by their names relative to the layer, replaced by `change`'s result."""
    tensors = {role: tensor for role, tensor in model.tensors.items() if not role.startswith("layers.")}
    layers = []
    for n, layer in enumerate(model.spec.layers):
        spec, changed = change(layer, model.layer(n))
        layers.append(spec)
        tensors |= {f"layers.{n}.{name}": tensor for name, tensor in changed.items()}
    return replace(model, spec=replace(model.spec, layers=tuple(layers)), tensors=tensors)


def _ungated_attention(layer: LayerSpec) -> bool:
    return isinstance(layer.mixer, Attention) and not layer.mixer.gated


def _shared_to_gate(layer: LayerSpec) -> bool:
    ffn = layer.feed_forward
    return isinstance(ffn, MoE) and ffn.shared is not None and not ffn.shared.gated


def _no_shared(layer: LayerSpec) -> bool:
    return isinstance(layer.feed_forward, MoE) and layer.feed_forward.shared is None


def _gate_attention(model: Model) -> Model:
    def change(layer: LayerSpec, tensors: LayerTensors) -> tuple[LayerSpec, LayerTensors]:
        mixer = layer.mixer
        if not isinstance(mixer, Attention) or mixer.gated:
            return layer, tensors
        gated = replace(mixer, gated=True)
        roles = gated.roles(model.spec.hidden)
        made: LayerTensors = {name: Filled(roles[name]) for name in ("attn.gate", "attn.gate_bias") if name in roles}
        made["attn.o"] = scaled(tensors["attn.o"], 2.0)
        return replace(layer, mixer=gated), {**tensors, **made}

    return map_layers(model, change)


def _gate_shared(model: Model) -> Model:
    def change(layer: LayerSpec, tensors: LayerTensors) -> tuple[LayerSpec, LayerTensors]:
        ffn = layer.feed_forward
        if not isinstance(ffn, MoE) or ffn.shared is None or ffn.shared.gated:
            return layer, tensors
        made: LayerTensors = {
            "shared.sigmoid": Filled((model.spec.hidden,)),
            "shared.down": scaled(tensors["shared.down"], 2.0),
        }
        return replace(layer, feed_forward=replace(ffn, shared=replace(ffn.shared, gated=True))), {**tensors, **made}

    return map_layers(model, change)


EMPTY_SHARED_WIDTH = 32
"""Width of a shared expert of zeros: the least that every block type of 32 holds."""


def _empty_shared(model: Model, *, gated: bool) -> Model:
    def change(layer: LayerSpec, tensors: LayerTensors) -> tuple[LayerSpec, LayerTensors]:
        ffn = layer.feed_forward
        if not isinstance(ffn, MoE) or ffn.shared is not None:
            return layer, tensors
        widths = {
            ff.shared.width for ff in (la.feed_forward for la in model.spec.layers) if isinstance(ff, MoE) and ff.shared
        }
        made = replace(ffn, shared=SharedExpert(max(widths, default=EMPTY_SHARED_WIDTH), gated))
        roles = made.roles(model.spec.hidden)
        zeros: LayerTensors = {name: Filled(shape) for name, shape in roles.items() if name.startswith("shared.")}
        return replace(layer, feed_forward=made), {**tensors, **zeros}

    return map_layers(model, change)


def _untie(model: Model) -> Model:
    tensors = {**model.tensors, "output": model.tensors["embedding"]}
    return replace(model, spec=replace(model.spec, tied=False), tensors=tensors)


RopePairs = Literal["half", "interleaved"]


def pair_order(dims: int, head_dim: int, pairs: RopePairs) -> list[int]:
    """Which dimension of a head each one is taken from, so that the first `dims` turn in `pairs` and not in the other order."""
    turned = [i + half for i in range(dims // 2) for half in (0, dims // 2)]
    if pairs == "half":
        turned = [*range(0, dims, 2), *range(1, dims, 2)]
    return [*turned, *range(dims, head_dim)]


def _reorder_pairs(pairs: RopePairs) -> Callable[[Model], Model]:
    def change(layer: LayerSpec, tensors: LayerTensors) -> tuple[LayerSpec, LayerTensors]:
        mixer = layer.mixer
        if not isinstance(mixer, Attention) or mixer.rope.pairs == pairs:
            return layer, tensors
        size = mixer.head_dim
        order = pair_order(mixer.rope.dims, size, pairs)
        made = dict(tensors)
        for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads)):
            rows = [head * size + dim for head in range(heads) for dim in order]
            for role in (f"attn.{name}", f"attn.{name}_bias"):
                if role in made:
                    made[role] = take(made[role], rows)
            norm = made.get(f"attn.{name}_norm")
            if norm is not None:
                flat = take(Reshaped(norm, (norm.size,)), rows if mixer.norm_per_head else order)
                made[f"attn.{name}_norm"] = Reshaped(flat, norm.shape)
        return replace(layer, mixer=replace(mixer, rope=replace(mixer.rope, pairs=pairs))), made

    return lambda model: map_layers(model, change)


def _turns(pairs: RopePairs) -> Callable[[LayerSpec], bool]:
    return lambda layer: isinstance(layer.mixer, Attention) and layer.mixer.rope.pairs == pairs


def _any(test: Callable[[LayerSpec], bool]) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(map(test, spec.layers))


INTERLEAVED_PAIRS = Rewrite(
    "rope in interleaved pairs",
    "the rows of queries and keys change places, so that dimensions which turn together lie side by side",
    _any(_turns("half")),
    _reorder_pairs("interleaved"),
)
HALF_PAIRS = Rewrite(
    "rope in pairs half a head apart",
    "the rows of queries and keys change places, so that dimensions which turn together lie half of the turned part apart",
    _any(_turns("interleaved")),
    _reorder_pairs("half"),
)
UNTIED_OUTPUT = Rewrite(
    "output written out",
    "the embedding that is also the output projection is stored a second time",
    lambda spec: spec.tied,
    _untie,
)
ZERO_ATTENTION_GATE = Rewrite(
    "zero attention gate",
    "sigmoid of a gate of zeros is 0.5, and the output projection is doubled",
    _any(_ungated_attention),
    _gate_attention,
)
ZERO_SHARED_GATE = Rewrite(
    "zero shared-expert gate",
    "sigmoid of a gate of zeros is 0.5, and the shared expert's down projection is doubled",
    _any(_shared_to_gate),
    _gate_shared,
)
EMPTY_SHARED_EXPERT = Rewrite(
    "empty shared expert",
    "a shared expert of zeros adds nothing",
    _any(_no_shared),
    partial(_empty_shared, gated=True),
)
EMPTY_UNGATED_EXPERT = Rewrite(
    "empty shared expert",
    "a shared expert of zeros adds nothing",
    _any(_no_shared),
    partial(_empty_shared, gated=False),
)
