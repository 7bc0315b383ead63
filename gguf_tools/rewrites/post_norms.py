"""Exact rewrite of a layer without norms after mixer and feed-forward as one with such norms that change nothing.

The RMS norm of y with weights w is the identity on y if y has one more channel with a constant C that is large against it:
its root mean square is C / √N · (1 + |y|² / 2C²), where N is the number of channels. The weights are C / √N on the real channels,
and 0 on the one with the constant, so that it never gets into the residual stream.

- The hidden size grows from n to N = n + 32, by channels of zeros.
- The mixer's constant is a bias of its output projection, which the rewrite of such biases turns into a value that is the same
  for every token.
- The feed-forward's constant comes from the norm before it: with the normed input z, z² = A(Kz) · z / K + A(-Kz) · (-z) / K for
  A = GELU, its tanh approximation and SiLU alike, and the sum of z² over the channels is n.

That sum is n only up to the norm's epsilon. So the stream is multiplied by s = 1024, which makes the epsilon s² times smaller,
and a further channel of the stream holds √(N · eps · (s² - 1)) for every token, which the norms before mixer, feed-forward and
output count as the epsilon that they have without s. Norms of heads keep theirs.

Weights of norms of the stream are multiplied by √(n / N), and the stream by √(N / n), which leaves the epsilon as it is.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from gguf_tools.model.spec import Attention, GatedMLP, Layer, LayerSpec, LayerTensors, Model, ModelSpec, Norm
from gguf_tools.rewrites.base import ATTENTION, ENDS, LAYER, MODEL, NORM, Rewrite
from gguf_tools.rewrites.rope_pairs import ANY_ATTENTION
from gguf_tools.tensors.base import Filled, InMemory, Tensor
from gguf_tools.tensors.products import Identity, ScaledColumns
from gguf_tools.tensors.views import Columns, concatenate, scaled, shifted

PAD = 32
"""Added channels: one block of the simple quantized types."""
CONSTANT = 2.0**20
"""C, at least: outputs of layers with a root mean square of 100 are far below it, and float32 sums its square."""
LEVEL = 2.0**5
"""The value that the mixer's constant is made of: its projection C / 32 and the value itself are numbers that F16 has."""
STREAM = 2.0**10
"""s, the factor on the residual stream."""
SHARP = 2.0**10
"""K, the factor on the gate of the units that make squares."""


def _bare(layer: LayerSpec) -> bool:
    """Whether the layer has the two norms before mixer and feed-forward, none after them, and a gate of GELUs or SiLUs."""
    before = layer.mixer_norm and layer.ffn_norm and not (layer.mixer_post_norm or layer.ffn_post_norm)
    ffn = layer.feed_forward
    gated = isinstance(ffn, GatedMLP) and ffn.activation in ("gelu", "gelu_tanh", "silu") and not ffn.bias
    return bool(before) and gated and isinstance(layer.mixer, Attention)


def _applies(spec: ModelSpec) -> bool:
    """Whether no layer has norms after mixer and feed-forward, and the logits have a cap, for which the form is worth its cost.

    The epsilons of the stream's norms must be equal: one channel stands for all of them.
    """
    eps = {norm.eps for layer in spec.layers for norm in (layer.mixer_norm, layer.ffn_norm) if norm}
    return spec.logit_softcap is not None and all(map(_bare, spec.layers)) and eps == {spec.output_norm.eps}


def _wider(matrix: Tensor) -> Tensor:
    """The matrix with columns of zeros for the added channels."""
    rows, columns = matrix.shape
    return Columns((matrix, Filled((rows, 1))), np.asarray([*range(columns), *[columns] * PAD]))


def _taller(matrix: Tensor, added: Tensor | None = None) -> Tensor:
    """The matrix or vector with entries for the added channels: `added`, then zeros."""
    rest = Filled((PAD - (added.shape[0] if added else 0), *matrix.shape[1:]))
    return concatenate([matrix, *([added] if added else []), rest])


def _identity(model: Model) -> Model:
    """The model with the norms, the constants, and the wider residual stream."""
    spec, hidden = model.spec, model.spec.hidden
    wide = hidden + PAD
    share = math.sqrt(hidden / wide)
    eps = spec.output_norm.eps

    def norm_weights(tensor: Tensor | None, norm: Norm) -> Tensor:
        """Weights of a norm of the stream, 0 for the added channels."""
        weights = Filled((hidden,), 1.0) if tensor is None else shifted(tensor, norm.offset)
        return _taller(scaled(weights, share))

    def change(layer: Layer) -> Layer:
        """The layer with its constants, and with norms that give what they get."""
        old, tensors = layer.spec, dict(layer.tensors)
        ffn, mixer = old.feed_forward, old.mixer
        assert isinstance(ffn, GatedMLP)  # as `_bare` has seen, and the rest
        assert isinstance(mixer, Attention)
        assert old.mixer_norm
        assert old.ffn_norm
        tensors["mixer_norm"] = norm_weights(tensors.get("mixer_norm"), old.mixer_norm)
        for name in ("q", "k", "v", "gate"):
            if f"attn.{name}" in tensors:
                tensors[f"attn.{name}"] = _wider(tensors[f"attn.{name}"])
        tensors["attn.o"] = _taller(tensors["attn.o"])
        tensors["attn.o_bias"] = _taller(tensors.get("attn.o_bias", Filled((hidden,))), Filled((1,), CONSTANT))
        tensors["mixer_post_norm"] = _taller(Filled((hidden,), STREAM * CONSTANT / math.sqrt(hidden)))
        tensors |= _squares(tensors, old.ffn_norm, hidden)
        norm = Norm(eps)
        made = replace(
            old,
            mixer=replace(mixer, bias=mixer.bias | {"o"}),
            feed_forward=replace(ffn, width=ffn.width + 2 * wide),
            mixer_norm=norm,
            mixer_post_norm=norm,
            ffn_norm=norm,
            ffn_post_norm=norm,
        )
        return Layer(made, tensors)

    layers, ends = [change(layer) for layer in model.layers], dict(model.tensors)
    scale = spec.embedding_scale * STREAM / share
    constant = math.sqrt(wide * eps * (STREAM**2 - 1.0))
    rows = spec.vocab_size
    columns = np.asarray([*range(hidden), hidden, *[hidden + 1] * (PAD - 1)])
    ends["embedding"] = Columns((ends["embedding"], Filled((rows, 1), constant / scale), Filled((rows, 1))), columns)
    if "output" in ends:
        ends["output"] = _wider(ends["output"])
    ends["output_norm"] = norm_weights(ends.get("output_norm"), spec.output_norm)
    specs = tuple(layer.spec for layer in layers)
    return replace(
        model,
        spec=replace(spec, hidden=wide, embedding_scale=scale, output_norm=Norm(eps), layers=specs),
        tensors=ends,
        layer_tensors=tuple(layer.tensors for layer in layers),
    )


def _squares(tensors: LayerTensors, norm: Norm, hidden: int) -> LayerTensors:
    """The feed-forward of a layer with units that sum the squares of its normed input, and the norms before and after it.

    The norm's own weights are moved into the columns of gate and up, so that its output is the same in every channel. The
    units are one pair for each of the N channels; each adds the same power of two to the channel of the constant.
    """
    wide = hidden + PAD
    share = math.sqrt(hidden / wide)
    each = min(2.0**15, CONSTANT / 2.0 ** int(math.log2(hidden)))
    unit = Identity(wide)
    weights = tensors.get("ffn_norm")

    def read(name: str) -> Tensor:
        matrix = tensors[f"ffn.{name}"]
        return _wider(matrix if weights is None else ScaledColumns(matrix, weights, norm.offset))

    down = tensors["ffn.down"]
    width = down.shape[1]
    padded = Columns((down, Filled((hidden, 1))), np.asarray([*range(width), *[width] * (2 * wide)]))
    row = InMemory(np.repeat(np.asarray([0.0, each], np.float32), (width, 2 * wide))[None])
    return {
        "ffn.gate": concatenate([read("gate"), scaled(unit, SHARP), scaled(unit, -SHARP)]),
        "ffn.up": concatenate([read("up"), scaled(unit, 1 / SHARP), scaled(unit, -1 / SHARP)]),
        "ffn.down": _taller(padded, row),
        "ffn_norm": Filled((wide,), share),
        "ffn_post_norm": _taller(Filled((hidden,), STREAM * each * hidden / math.sqrt(hidden))),
    }


POST_NORM_IDENTITY = Rewrite(
    name="norms after mixer and feed-forward that change nothing",
    why="one more channel with a large constant fixes the root mean square, so that such a norm gives what it gets; with it the "
    "graph's cap on the logits can be used",
    applies=_applies,
    apply=_identity,
    parts=(ModelSpec, LayerSpec, Norm, Attention, GatedMLP),
    expresses=MODEL
    | (ENDS - {"ModelSpec.positions", "ModelSpec.embedding_norm=Norm"})
    | (LAYER - {"LayerSpec.mixer=DeltaNet", "LayerSpec.feed_forward=MLP", "LayerSpec.feed_forward=MoE"})
    | NORM
    | {"Norm.weighted"}
    | ATTENTION
    | ANY_ATTENTION
    | {"GatedMLP.activation=silu", "GatedMLP.activation=gelu", "GatedMLP.activation=gelu_tanh"},
)
"""Not linear: it multiplies a layer's gate by its norm's weights."""
