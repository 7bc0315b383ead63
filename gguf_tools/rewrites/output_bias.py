"""Exact rewrites of a bias on the attention output, for architectures that have none.

Attention weights sum to 1, so a value dimension that is 1 for every token is 1 in the attention output too, and its column
of the output projection is added to every token, as a bias is. There are two ways to add such a value dimension:

- an added key/value head with its group of query heads, all zeros except for a bias of 1 on one value dimension;
- heads widened from D to W dimensions. Query and key rows are multiplied by √(W/D) and the new rows are zero, so that the
  RMS over W equals the RMS over D, epsilon included. The key norm's weight is divided by √(W/D); the query norm's weight
  is not, because scores are divided by √W instead of √D.

The first is cheaper where D / kv_heads ≤ W - D, needs no rounding, and keeps the rotated fraction of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from gguf_tools.model.rope import Rope
from gguf_tools.model.spec import Attention, Layer, LayerTensors, Model, ModelSpec, Norm
from gguf_tools.rewrites.base import ATTENTION, NORM, ROPE, Rewrite, map_layers
from gguf_tools.tensors.base import Filled, InMemory, Tensor
from gguf_tools.tensors.views import Columns, Reshaped, concatenate, scaled, shifted, take

STEP = 32
"""Head widths are multiples of this, the block size of the simple quantized types."""

MixerChange = Callable[[Attention, LayerTensors, int], tuple[Attention, LayerTensors]]


def applies(spec: ModelSpec) -> bool:
    """Whether any attention has a bias on its output."""
    return any("o" in layer.mixer.bias for layer in spec.layers if isinstance(layer.mixer, Attention))


def wider(head_dim: int) -> int:
    """The next multiple of 32 above a head's dimensions."""
    return (head_dim // STEP + 1) * STEP


def heads_are_cheaper(spec: ModelSpec) -> bool:
    """Whether another key/value head adds no more weights than wider heads, or wider heads are not possible."""
    for layer in spec.layers:
        mixer = layer.mixer
        if isinstance(mixer, Attention):
            own = mixer.norm_per_head or mixer.norm_gain or mixer.value_scale
            if own or mixer.head_dim <= mixer.kv_heads * (wider(mixer.head_dim) - mixer.head_dim):
                return True
    return False


def by_heads(model: Model, level: float = 1.0) -> Model:
    """The bias through one more key/value head in every attention layer, whose first value dimension is `level`."""
    return _map_attention(model, partial(_more_heads, level=level))


def by_width(model: Model) -> Model:
    """The bias through wider heads in every attention layer."""
    return _map_attention(model, _wider_heads)


def cheapest(model: Model) -> Model:
    """The bias by whichever of the two adds fewer weights."""
    return by_heads(model) if heads_are_cheaper(model.spec) else by_width(model)


def _map_attention(model: Model, change: MixerChange) -> Model:
    # Layers without a bias change too, because an architecture has the same head counts in all attention layers.
    def changed(layer: Layer) -> Layer:
        if not isinstance(layer.spec.mixer, Attention):
            return layer
        mixer, tensors = change(layer.spec.mixer, dict(layer.tensors), model.spec.hidden)
        return Layer(replace(layer.spec, mixer=mixer), tensors)

    return map_layers(model, changed)


def _bias_column(mixer: Attention, tensors: LayerTensors, hidden: int) -> Tensor | None:
    """The bias as a column (hidden, 1), doubled where the new gate is zero, since sigmoid(0) = 0.5; None without a bias."""
    if "o" not in mixer.bias:
        return None
    column = Reshaped(tensors.pop("attn.o_bias"), (hidden, 1))
    return scaled(column, 2.0) if mixer.gated else column


def _output(tensors: LayerTensors, column: Tensor | None, hidden: int, index: list[int]) -> Tensor:
    """Columns `index` of [output projection | bias (zeros without one) | one column of zeros], rows of length `hidden`."""
    zero = Filled((hidden, 1))
    return Columns((tensors["attn.o"], zero if column is None else column, zero), np.asarray(index))


def _one_hot(width: int, places: list[int]) -> Tensor:
    values = np.zeros(width, np.float32)
    values[places] = 1.0
    return InMemory(values)


def _more_heads(
    mixer: Attention, tensors: LayerTensors, hidden: int, *, level: float
) -> tuple[Attention, LayerTensors]:
    """Adds a key/value head and its group of query heads, whose first value dimension is always `level`.

    Its q, k, v and gate rows are zero; norm weights, gains and scales of the new heads are 1.
    """
    heads, kv_heads, dim = mixer.heads, mixer.kv_heads, mixer.head_dim
    group = heads // kv_heads
    column = _bias_column(mixer, tensors, hidden)
    rows = {"q": group * dim, "k": dim, "v": dim, "gate": group * dim}
    for name, count in rows.items():
        if f"attn.{name}" in tensors:
            tensors[f"attn.{name}"] = concatenate([tensors[f"attn.{name}"], Filled((count, hidden))])
        if f"attn.{name}_bias" in tensors and name != "v":
            tensors[f"attn.{name}_bias"] = concatenate([tensors[f"attn.{name}_bias"], Filled((count,))])
    bias = mixer.bias - {"o"}
    if column is not None:
        values = tensors.get("attn.v_bias", Filled((kv_heads * dim,)))
        tensors["attn.v_bias"] = concatenate([values, scaled(_one_hot(dim, [0]), level)])
        column = scaled(column, 1.0 / level)
        bias |= {"v"}
    elif "v" in bias:
        tensors["attn.v_bias"] = concatenate([tensors["attn.v_bias"], Filled((dim,))])
    own: dict[str, tuple[int, ...]] = {}
    own |= {"q_norm": (group, dim), "k_norm": (1, dim)} if mixer.norm_per_head else {}
    own |= {"q_gain": (group,), "k_gain": (1,)} if mixer.norm_gain else {}
    own |= {"v_scale": (1,)} if mixer.value_scale else {}
    for name, shape in own.items():
        tensors[f"attn.{name}"] = concatenate([tensors[f"attn.{name}"], Filled(shape, 1.0)])
    width = heads * dim
    tensors["attn.o"] = _output(tensors, column, hidden, [*range(width + 1), *[width + 1] * (group * dim - 1)])
    return replace(mixer, heads=heads + group, kv_heads=kv_heads + 1, bias=bias), tensors


def _wider_heads(mixer: Attention, tensors: LayerTensors, hidden: int) -> tuple[Attention, LayerTensors]:
    """Widens all heads from `head_dim` to the next multiple of 32; the first new value dimension of head 0 is always 1.

    See the module's docstring for the factors on queries, keys and their norms.
    """
    dim, wide = mixer.head_dim, wider(mixer.head_dim)
    factor = (wide / dim) ** 0.5
    column = _bias_column(mixer, tensors, hidden)

    def widened(name: str, heads: int, factor: float = 1.0) -> None:
        for role in (f"attn.{name}", f"attn.{name}_bias"):
            if role in tensors:
                base = tensors[role]
                padded = take(concatenate([base, Filled((1, *base.shape[1:]))]), _padded(heads, dim, wide))
                tensors[role] = padded if factor == 1.0 else scaled(padded, factor)

    normed = mixer.qk_norm is not None
    widened("q", mixer.heads, factor)
    widened("k", mixer.kv_heads, factor if normed else 1.0)
    widened("v", mixer.kv_heads)
    widened("gate", mixer.heads)
    qk_norm = mixer.qk_norm
    if qk_norm:
        for name, share in (("q", 1.0), ("k", 1 / factor)):
            weight = scaled(shifted(tensors[f"attn.{name}_norm"], qk_norm.offset), share)
            tensors[f"attn.{name}_norm"] = concatenate([weight, Filled((wide - dim,))])
        qk_norm = Norm(qk_norm.eps)
    bias = mixer.bias - {"o"}
    width = mixer.heads * dim
    index = [width + 1 if n == width else n for n in _padded(mixer.heads, dim, wide)]
    if column is not None:
        values = mixer.kv_heads * wide
        ones = _one_hot(values, [dim])
        before = tensors.get("attn.v_bias")
        tensors["attn.v_bias"] = (
            ones
            if before is None
            else take(
                concatenate([before, Filled((1,), 1.0)]),
                [values if n == dim else n for n in range(values)],
            )
        )
        bias |= {"v"}
        index[dim] = width
    tensors["attn.o"] = _output(tensors, column, hidden, index)
    return replace(mixer, head_dim=wide, qk_norm=qk_norm, bias=bias), tensors


def _padded(heads: int, dim: int, wide: int) -> list[int]:
    """Row indices that pad each head from `dim` to `wide` rows; padding has the index heads · dim, a row of zeros."""
    return [head * dim + d if d < dim else heads * dim for head in range(heads) for d in range(wide)]


OUTPUT_BIAS = Rewrite(
    name="bias on the attention output",
    why="the bias becomes a column of the output projection, applied to a value dimension that is always 1, in an added "
    "key/value head or in wider heads",
    applies=applies,
    apply=cheapest,
    linear=True,
    parts=(Attention, Norm, Rope),
    expresses=ATTENTION - {"Attention.value_dim"} | NORM | ROPE | {"Attention.rope=None"},
)
OUTPUT_BIAS_BY_HEADS = replace(
    OUTPUT_BIAS,
    why="the bias becomes a column of the output projection, applied to a value dimension that is always 1, in an added "
    "key/value head",
    apply=by_heads,
    expresses=OUTPUT_BIAS.expresses
    | {"Attention.scale", "Attention.softcap", "Attention.norm_after_rope", "Rope.backwards"},
)


def output_bias_at(level: float) -> Rewrite:
    """`OUTPUT_BIAS_BY_HEADS` with a value dimension that is always `level`, for biases that are large."""
    return replace(OUTPUT_BIAS_BY_HEADS, apply=partial(by_heads, level=level))
