"""Exact rewrites of RoPE: between the pair orders interleaved (GPT-J) and rotate-half (NeoX), and from a part of a head to the
whole head by frequency factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from gguf_tools.model.rope import FactorScaling, Rope, YarnScaling, frequencies
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Model
from gguf_tools.rewrites.base import ATTENTION, ROPE, Rewrite, any_layer, map_layers
from gguf_tools.tensors.views import Reshaped, take

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
