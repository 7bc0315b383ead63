"""The forward pass of a decoder in plain torch, as specified by its `ModelSpec`.

There is no cache: a call runs whole token sequences and returns the logits of every position. Sequences of different lengths
are padded on the right, which does not affect earlier positions because every mixer is causal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from gguf_tools.errors import UnsupportedError
from gguf_tools.model.features import features, undeclared
from gguf_tools.model.spec import Attention, LayerSpec, Model, MoE
from gguf_tools.reference.feed_forward import dense, moe
from gguf_tools.reference.mixers import attention, delta_net
from gguf_tools.reference.norm import rms_norm
from gguf_tools.reference.weights import load_all

Observer = Callable[[int, str, torch.Tensor], None]
"""Called with (layer number, name of the point, activations) at points that llama.cpp's graph also names."""

EXPRESSES = frozenset(
    {
        "ModelSpec.output_norm=Norm",
        "ModelSpec.tied=false",
        "ModelSpec.tied=true",
        "ModelSpec.embedding_scale",
        "ModelSpec.logit_scale",
        "LayerSpec.mixer=Attention",
        "LayerSpec.mixer=DeltaNet",
        "LayerSpec.feed_forward=GatedMLP",
        "LayerSpec.feed_forward=MLP",
        "LayerSpec.feed_forward=MoE",
        "LayerSpec.mixer_norm=Norm",
        "LayerSpec.ffn_norm=Norm",
        "LayerSpec.residual_scale",
        "Norm.offset",
        "Attention.rope=Rope",
        "Attention.rope=None",
        "Attention.scale",
        "Attention.bias=q",
        "Attention.bias=k",
        "Attention.bias=v",
        "Attention.bias=o",
        "Attention.qk_norm=Norm",
        "Attention.gated",
        "Attention.norm_per_head",
        "Attention.norm_gain",
        "Attention.value_scale",
        "Attention.window",
        "Attention.value_dim",
        "Rope.dims",
        "Rope.pairs=half",
        "Rope.pairs=interleaved",
        "Rope.scaling=LinearScaling",
        "Rope.scaling=YarnScaling",
        "Rope.scaling=Llama3Scaling",
        "Rope.scaling=FactorScaling",
        "YarnScaling.beta_fast",
        "YarnScaling.beta_slow",
        "YarnScaling.attention_factor",
        "YarnScaling.truncate",
        "DeltaNet.norm=Norm",
        "DeltaNet.decay=log",
        "DeltaNet.decay=rate",
        "GatedMLP.activation=silu",
        "GatedMLP.activation=gelu",
        "GatedMLP.activation=gelu_tanh",
        "GatedMLP.activation=relu",
        "GatedMLP.activation=relu2",
        "GatedMLP.bias=gate",
        "GatedMLP.bias=up",
        "GatedMLP.bias=down",
        "MLP.activation=silu",
        "MLP.activation=gelu",
        "MLP.activation=gelu_tanh",
        "MLP.activation=relu",
        "MLP.activation=relu2",
        "MLP.bias=up",
        "MLP.bias=down",
        "MoE.router=Router",
        "MoE.shared=SharedExpert",
        "Router.normalised=true",
        "Router.normalised=false",
        "Router.score=softmax",
        "Router.score=sigmoid",
        "Router.scale",
        "Router.selection_bias",
        "SharedExpert.gated=true",
        "SharedExpert.gated=false",
    }
)
"""The features (`model.features`) that the forward pass computes."""


class Reference:
    """A model's weights in memory, and its forward pass.

    `dtype` is the type of weights and arithmetic: llama.cpp computes in float32; against float64 a comparison shows
    llama.cpp's rounding only.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32) -> None:
        """Read all weights. Raises UnsupportedError for a model with a feature that the forward pass does not support."""
        lacking = undeclared(features(model.spec), EXPRESSES)
        if lacking:
            raise UnsupportedError(
                f"the torch reference does not support {', '.join(lacking)}, which this {model.family} model has"
            )
        self.spec = model.spec
        self.dtype = dtype
        self.weights = load_all(model.tensors, dtype)
        self.layers = [load_all(tensors, dtype) for tensors in model.layer_tensors]

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
        """Logits of every position of each sequence, as arrays of shape (length, vocab_size)."""
        longest = max(map(len, sequences))
        tokens = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(list(sequence))
        with torch.inference_mode():
            hidden = self.forward(tokens)
            head = self.weights["embedding" if self.spec.tied else "output"]
            return [
                (functional.linear(hidden[row, : len(sequence)], head) * self.spec.logit_scale).numpy()
                for row, sequence in enumerate(sequences)
            ]

    def forward(self, tokens: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """Final normed hidden states, shape (batch, length, hidden), of tokens (batch, length)."""
        x = functional.embedding(tokens, self.weights["embedding"]) * self.spec.embedding_scale
        for n, layer in enumerate(self.spec.layers):
            x = self.layer(n, layer, x, observe or _ignore)
        return rms_norm(x, self.weights["output_norm"], self.spec.output_norm)

    def layer(self, n: int, layer: LayerSpec, x: torch.Tensor, observe: Observer) -> torch.Tensor:
        """Layer n on the residual stream x, shape (batch, length, hidden)."""
        weights = self.layers[n]
        normed = rms_norm(x, weights["mixer_norm"], layer.mixer_norm)
        observe(n, "mixer_norm", normed)
        mixer = layer.mixer
        mixed = attention(mixer, weights, normed) if isinstance(mixer, Attention) else delta_net(mixer, weights, normed)
        observe(n, "mixer_out", mixed)
        x = x + mixed * layer.residual_scale
        normed = rms_norm(x, weights["ffn_norm"], layer.ffn_norm)
        observe(n, "ffn_norm", normed)
        ffn = layer.feed_forward
        out = moe(ffn, weights, normed) if isinstance(ffn, MoE) else dense(ffn, weights, normed)
        observe(n, "ffn_out", out)
        x = x + out * layer.residual_scale
        observe(n, "layer_out", x)
        return x


def _ignore(_layer: int, _point: str, _values: torch.Tensor) -> None:
    return
