"""Exact rewrites between the two RoPE pair orders: interleaved (GPT-J) and rotate-half (NeoX)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Layer, LayerSpec, Model
from gguf_tools.rewrites.base import ATTENTION, ROPE, Rewrite, any_layer, map_layers
from gguf_tools.tensors.views import Reshaped, take

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
        if not isinstance(mixer, Attention) or mixer.rope.pairs == pairs:
            return layer
        size = mixer.head_dim
        order = pair_order(mixer.rope.dims, size, pairs)
        made = dict(layer.tensors)
        for name, heads in (("q", mixer.heads), ("k", mixer.kv_heads)):
            rows = [head * size + dim for head in range(heads) for dim in order]
            for role in (f"attn.{name}", f"attn.{name}_bias"):
                if role in made:
                    made[role] = take(made[role], rows)
            norm = made.get(f"attn.{name}_norm")
            if norm is not None:
                flat = take(Reshaped(norm, (norm.size,)), rows if mixer.norm_per_head else order)
                made[f"attn.{name}_norm"] = Reshaped(flat, norm.shape)
        return Layer(replace(layer.spec, mixer=replace(mixer, rope=replace(mixer.rope, pairs=pairs))), made)

    return lambda model: map_layers(model, change)


def _turns(pairs: RopePairs) -> Callable[[LayerSpec], bool]:
    return lambda layer: isinstance(layer.mixer, Attention) and layer.mixer.rope.pairs == pairs


INTERLEAVED_PAIRS = Rewrite(
    name="rope in interleaved pairs",
    why="permutes the rows of queries and keys from rotate-half (NeoX) to interleaved (GPT-J) rope order",
    applies=any_layer(_turns("half")),
    apply=_reorder_pairs("interleaved"),
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE,
)


HALF_PAIRS = Rewrite(
    name="rope in pairs half a head apart",
    why="permutes the rows of queries and keys from interleaved (GPT-J) to rotate-half (NeoX) rope order",
    applies=any_layer(_turns("interleaved")),
    apply=_reorder_pairs("half"),
    linear=True,
    keeps_row_angles=True,
    parts=(Attention, Rope),
    expresses=ATTENTION | ROPE,
)
