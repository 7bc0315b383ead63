"""Exact rewrites of RoPE: between the pair orders interleaved (GPT-J) and rotate-half (NeoX), from a part of a head to the whole
head by frequency factors, from the other direction, and with the q/k norm before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from gguf_tools.model.rope import FactorScaling, Rope, YarnScaling, frequencies
from gguf_tools.model.spec import Attention, Layer, LayerSpec, LayerTensors, Model
from gguf_tools.rewrites.base import ATTENTION, ROPE, Rewrite, any_layer, map_layers
from gguf_tools.tensors.views import Reshaped, scaled_rows, take

ANY_ATTENTION = frozenset(
    {
        "Attention.rope=None",
        "Attention.scale",
        "Attention.softcap",
        "Attention.clip",
        "Attention.norm_whole",
        "Attention.norm_after_rope",
        "Rope.backwards",
    }
)
RopePairs = Literal["half", "interleaved"]


def pair_order(dims: int, head_dim: int, pairs: RopePairs) -> list[int]:
    """Source indices of a head's dimensions that bring the first `dims` from the other rope order into `pairs`."""
    turned = [i + half for i in range(dims // 2) for half in (0, dims // 2)]
    if pairs == "half":
        turned = [*range(0, dims, 2), *range(1, dims, 2)]
    return [*turned, *range(dims, head_dim)]


def _reorder_pairs(pairs: RopePairs) -> Callable[[Model], Model]:
    """A rewrite that permutes the rows of q and k (and their biases and norms) within each head into the order `pairs`."""

    def change(layer: Layer) -> Layer:
        """The layer with its q and k rows permuted, if its attention has the other pair order."""
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or mixer.rope is None or mixer.rope.pairs == pairs:
            return layer
        size = mixer.head_dim
        order = pair_order(mixer.rope.dims, size, pairs)
        made = dict(layer.tensors)
        for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads)):
            rows = [head * size + dim for head in range(heads) for dim in order]
            for role in (f"attn.{name}", f"attn.{name}_bias"):
                if role in made:
                    made[role] = take(made[role], rows)
            for role in (f"attn.{name}_norm", f"attn.{name}_norm_bias"):
                if role in made:
                    norm = made[role]
                    flat = take(Reshaped(norm, (norm.size,)), order if norm.size == size else rows)
                    made[role] = Reshaped(flat, norm.shape)
        return Layer(replace(layer.spec, mixer=replace(mixer, rope=replace(mixer.rope, pairs=pairs))), made)

    return lambda model: map_layers(model, change)


def _turns(pairs: RopePairs) -> Callable[[LayerSpec], bool]:
    def test(layer: LayerSpec) -> bool:
        rope = layer.mixer.rope if isinstance(layer.mixer, Attention) else None
        return rope is not None and rope.pairs == pairs

    return test


INTERLEAVED_PAIRS = Rewrite(
    name="rope in interleaved pairs",
    why="permutes the rows of queries and keys from rotate-half (NeoX) to interleaved (GPT-J) rope order",
    applies=any_layer(_turns("half")),
    apply=_reorder_pairs("interleaved"),
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE | ANY_ATTENTION,
)


HALF_PAIRS = Rewrite(
    name="rope in pairs half a head apart",
    why="permutes the rows of queries and keys from interleaved (GPT-J) to rotate-half (NeoX) rope order",
    applies=any_layer(_turns("interleaved")),
    apply=_reorder_pairs("half"),
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE | ANY_ATTENTION,
)


STILL = 1e30
"""A divisor that leaves no rotation: an angle of 1e-24 a million positions on."""


def _partial(rope: Rope | None, head_dim: int) -> bool:
    return rope is not None and rope.dims < head_dim and not isinstance(rope.scaling, YarnScaling)


def whole_head(rope: Rope, head_dim: int) -> Rope:
    """The rope of all `head_dim` dimensions, in interleaved pairs, that turns the first `dims` as `rope` does and no others."""
    plain = frequencies(replace(rope, dims=head_dim, scaling=None))[0]
    turned = frequencies(rope)[0]
    factors = [*(plain[: len(turned)] / turned), *[STILL] * (len(plain) - len(turned))]
    return replace(rope, dims=head_dim, scaling=FactorScaling(tuple(map(float, factors))))


def _whole(model: Model) -> Model:
    def change(layer: Layer) -> Layer:
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or mixer.rope is None or not _partial(mixer.rope, mixer.head_dim):
            return layer
        rope = whole_head(mixer.rope, mixer.head_dim)
        return Layer(replace(layer.spec, mixer=replace(mixer, rope=rope)), layer.tensors)

    return map_layers(model, change)


def _turns_a_part(layer: LayerSpec) -> bool:
    mixer = layer.mixer
    return isinstance(mixer, Attention) and _partial(mixer.rope, mixer.head_dim)


def _interleaved(model: Model) -> bool:
    return all(rope.pairs == "interleaved" for rope in _ropes(model))


def _ropes(model: Model) -> list[Rope]:
    mixers = [layer.mixer for layer in model.spec.layers]
    return [mixer.rope for mixer in mixers if isinstance(mixer, Attention) and mixer.rope]


WHOLE_ROPE = Rewrite(
    name="rope on a part of a head by frequency factors",
    why="the pairs that do not turn get a frequency of almost zero",
    applies=any_layer(_turns_a_part),
    apply=_whole,
    holds=_interleaved,
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE | ANY_ATTENTION,
)
"""After `INTERLEAVED_PAIRS`: only there do the pairs that turn come first."""


# Direction


def _turns_back(layer: LayerSpec) -> bool:
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or mixer.rope is None or not mixer.rope.backwards:
        return False
    # The mean that a layer norm subtracts, and a bias, depend on the signs.
    return mixer.qk_norm is None or not (mixer.qk_norm.centred or mixer.qk_norm.bias)


def _forwards(model: Model) -> Model:
    """Negates the second dimension of each pair in the rows of q and k: of a pair (a, -b), rope by θ makes (a', -b'), where
    (a', b') is (a, b) turned by -θ. Scores are the same, because both signs cancel."""

    def change(layer: Layer) -> Layer:
        """The layer with signs changed, if its rope rotates backwards."""
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or mixer.rope is None or not _turns_back(layer.spec):
            return layer
        rope, signs = mixer.rope, np.ones(mixer.head_dim)
        signs[slice(rope.dims // 2, rope.dims) if rope.pairs == "half" else slice(1, rope.dims, 2)] = -1.0
        made: LayerTensors = {}
        for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads)):
            for role in (f"attn.{name}", f"attn.{name}_bias"):
                if role in layer.tensors:
                    made[role] = scaled_rows(layer.tensors[role], np.tile(signs, heads))
        spec = replace(layer.spec, mixer=replace(mixer, rope=replace(rope, backwards=False)))
        return Layer(spec, {**layer.tensors, **made})

    return map_layers(model, change)


FORWARD_ROPE = Rewrite(
    name="rope that rotates forwards",
    why="half of the rows of queries and keys are negated, which reverses the rotation",
    applies=any_layer(_turns_back),
    apply=_forwards,
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE | ANY_ATTENTION,
    removes=frozenset({"Rope.backwards"}),
)


# The norm of queries and keys after rope


def _normed_late(layer: LayerSpec) -> bool:
    """Whether the q/k norm follows a rotation alone, which leaves the root mean square of a head as it is."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or not mixer.norm_after_rope or mixer.qk_norm is None:
        return False
    turned = mixer.rope is None or frequencies(mixer.rope)[1] == 1.0
    return turned and not (mixer.norm_whole or mixer.norm_gain or mixer.qk_norm.centred or mixer.qk_norm.bias)


def _norm_early(model: Model) -> Model:
    def change(layer: Layer) -> Layer:
        if not isinstance(layer.spec.mixer, Attention) or not _normed_late(layer.spec):
            return layer
        return Layer(replace(layer.spec, mixer=replace(layer.spec.mixer, norm_after_rope=False)), layer.tensors)

    return map_layers(model, change)


def _weights_commute(model: Model) -> bool:
    """Whether the two dimensions of each pair have the same norm weight, so that rotation and weights can change places."""
    for layer in model.layers:
        mixer = layer.spec.mixer
        if not isinstance(mixer, Attention) or not _normed_late(layer.spec) or mixer.rope is None:
            continue
        order = pair_order(mixer.rope.dims, mixer.head_dim, "interleaved")
        order = order if mixer.rope.pairs == "half" else list(range(mixer.head_dim))
        for role in ("attn.q_norm", "attn.k_norm"):
            if role in layer.tensors:
                turned = layer.tensors[role].array()[..., order][..., : mixer.rope.dims]
                if not np.array_equal(turned[..., 0::2], turned[..., 1::2]):
                    return False
    return True


NORM_BEFORE_ROPE = Rewrite(
    name="q/k norm before rope",
    why="a rotation leaves the root mean square as it is, and the dimensions that turn together have the same weight",
    applies=any_layer(_normed_late),
    apply=_norm_early,
    holds=_weights_commute,
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE | ANY_ATTENTION,
    removes=frozenset({"Attention.norm_after_rope"}),
)
