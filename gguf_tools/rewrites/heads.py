"""Exact rewrites of attention heads: per-head q/k norm weights, per-head gains, and scales of the value heads.

Norm weights, gains and scales are small and are read when a rewrite is applied; projections stay lazy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Layer, LayerTensors, Model, ModelSpec, Norm
from gguf_tools.rewrites.base import ATTENTION, NORM, ROPE, Rewrite, map_layers
from gguf_tools.tensors.base import InMemory, Tensor
from gguf_tools.tensors.views import scaled_rows, take

Doubles = NDArray[np.float64]


def _numbers(tensor: Tensor) -> Doubles:
    return tensor.array().astype(np.float64)


def _made(values: Doubles, like: Tensor) -> Tensor:
    """Values computed from the tensor `like`, with its source names."""
    return InMemory(values.astype(np.float32), like.sources)


def _heads(mixer: Attention) -> tuple[tuple[str, int], ...]:
    return ("q", mixer.heads), ("k", mixer.kv_heads)


def _any(test: Callable[[Attention], bool]) -> Callable[[ModelSpec], bool]:
    return lambda spec: any(isinstance(layer.mixer, Attention) and test(layer.mixer) for layer in spec.layers)


def _map_attention(
    test: Callable[[Attention], bool], change: Callable[[Attention, LayerTensors], Attention]
) -> Callable[[Model], Model]:
    """A rewrite of the layers whose attention passes `test`; `change` modifies a copy of their tensors in place."""

    def changed(layer: Layer) -> Layer:
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or not test(mixer):
            return layer
        tensors = dict(layer.tensors)
        return Layer(replace(layer.spec, mixer=change(mixer, tensors)), tensors)

    return lambda model: map_layers(model, changed)


def _fold_gain(mixer: Attention, tensors: LayerTensors) -> Attention:
    norm = mixer.qk_norm
    if norm is None:
        raise ValueError("norm_gain is set without qk_norm")
    for name, heads in _heads(mixer):
        weight, gain = tensors[f"attn.{name}_norm"], _numbers(tensors.pop(f"attn.{name}_gain"))
        each = np.broadcast_to(_numbers(weight) + norm.offset, (heads, mixer.head_dim))
        tensors[f"attn.{name}_norm"] = _made(each * gain[:, None], weight)
    return replace(mixer, norm_gain=False, norm_per_head=True, qk_norm=Norm(norm.eps))


def _share_norm(mixer: Attention, tensors: LayerTensors) -> Attention:
    for name, _ in _heads(mixer):
        weight = tensors[f"attn.{name}_norm"]
        tensors[f"attn.{name}_norm"] = InMemory(weight.array()[0], weight.sources)
    return replace(mixer, norm_per_head=False)


def _heads_alike(model: Model) -> bool:
    for layer in model.layers:
        if isinstance(layer.spec.mixer, Attention) and layer.spec.mixer.norm_per_head:
            for name in ("q", "k"):
                weight = layer.tensors[f"attn.{name}_norm"].array()
                if not np.array_equal(weight, np.broadcast_to(weight[0], weight.shape)):
                    return False
    return True


def _widen(mixer: Attention, tensors: LayerTensors) -> Attention:
    """Widens query and key heads from D to 2D dimensions, so that one norm weight can serve all heads.

    For a head with norm weights w, and c = max |w| over the heads (per dimension), its rows W become √2 · [w/c · W ;
    √(1 - (w/c)²) · W]. The squares of both halves sum to 2 · |W x|², so the RMS over 2D equals the RMS over D, epsilon
    included. The shared norm weight is c/√2 on the first half (for queries c, since scores are now divided by √(2D)
    instead of √D) and zero on the second.
    """
    norm, dim = mixer.qk_norm, mixer.head_dim
    if norm is None:
        raise ValueError("norm_per_head is set without qk_norm")
    for name, heads in _heads(mixer):
        role = f"attn.{name}_norm"
        weight = _numbers(tensors[role]) + norm.offset
        largest = np.abs(weight).max(axis=0)
        share = np.divide(weight, largest, out=np.zeros_like(weight), where=largest > 0)
        rest = np.sqrt(np.maximum(1.0 - share**2, 0.0))
        factors = np.sqrt(2.0) * np.concatenate([share, rest], axis=1).reshape(-1)
        rows = [head * dim + d % dim for head in range(heads) for d in range(2 * dim)]
        for projection in (f"attn.{name}", f"attn.{name}_bias"):
            if projection in tensors:
                tensors[projection] = scaled_rows(take(tensors[projection], rows), factors)
        shared = largest if name == "q" else largest / np.sqrt(2.0)
        tensors[role] = _made(np.concatenate([shared, np.zeros(dim)]), tensors[role])
    return replace(mixer, head_dim=2 * dim, value_dim=mixer.value_size, norm_per_head=False, qk_norm=Norm(norm.eps))


def _fold_value_scale(mixer: Attention, tensors: LayerTensors) -> Attention:
    factors = np.repeat(_numbers(tensors.pop("attn.v_scale")), mixer.value_size)
    for role in ("attn.v", "attn.v_bias"):
        if role in tensors:
            tensors[role] = scaled_rows(tensors[role], factors)
    return replace(mixer, value_scale=False)


FOLDED_GAIN = Rewrite(
    name="gain folded into the q/k norm",
    why="the norm weights are multiplied by the gain of each head",
    applies=_any(lambda mixer: mixer.norm_gain),
    apply=_map_attention(lambda mixer: mixer.norm_gain, _fold_gain),
    parts=(Attention, Norm),
    expresses=ATTENTION | NORM,
)
SHARED_HEAD_NORM = Rewrite(
    name="one q/k norm for all heads",
    why="the heads' norm weights are equal",
    applies=_any(lambda mixer: mixer.norm_per_head and not mixer.norm_gain),
    apply=_map_attention(lambda mixer: mixer.norm_per_head, _share_norm),
    holds=_heads_alike,
    linear=True,
    parts=(Attention,),
    expresses=ATTENTION,
)
WIDENED_HEADS = Rewrite(
    name="q/k heads widened for a shared norm",
    why="with twice the head dimensions, one norm weight vector serves all heads; keys take twice the space in the cache",
    applies=_any(lambda mixer: mixer.norm_per_head and not mixer.norm_gain),
    apply=_map_attention(lambda mixer: mixer.norm_per_head, _widen),
    parts=(Attention, Norm, Rope),
    expresses=ATTENTION | NORM | ROPE,
)
FOLDED_VALUE_SCALE = Rewrite(
    name="value scale folded into the values",
    why="the rows of the value projection are multiplied by the scale of their head",
    applies=_any(lambda mixer: mixer.value_scale),
    apply=_map_attention(lambda mixer: mixer.value_scale, _fold_value_scale),
    parts=(Attention,),
    expresses=ATTENTION,
)
