"""The forward pass of a decoder in plain torch, as specified by its `ModelSpec`.

A call runs whole token sequences and returns the logits of every position. Sequences of different lengths are padded on the
right, which does not affect earlier positions because every mixer is causal. A long sequence is read layer by layer, each layer
in blocks (`Reference.blocks`), so that neither scores nor logits of the whole sequence are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from gguf_tools.errors import UnsupportedError
from gguf_tools.model.features import undeclared
from gguf_tools.model.rope import LongRopeScaling
from gguf_tools.model.spec import Attention, LayerSpec, Mamba2, Mixer, Model, ModelSpec, MoE, ShortConv
from gguf_tools.progress import CountProgress
from gguf_tools.reference.feed_forward import dense, moe
from gguf_tools.reference.mixers import attention, delta_net
from gguf_tools.reference.norm import normed
from gguf_tools.reference.observe import OUTSIDE, Observe, Observer, unobserved
from gguf_tools.reference.past import Past
from gguf_tools.reference.state_space import mamba2, short_conv
from gguf_tools.reference.weights import StreamedLayers, Weights, load_all, load_layer

EXPRESSES = frozenset(
    {
        "ModelSpec.output_norm=Norm",
        "ModelSpec.tied=false",
        "ModelSpec.tied=true",
        "ModelSpec.embedding_scale",
        "ModelSpec.logit_scale",
        "ModelSpec.positions",
        "ModelSpec.embedding_norm=Norm",
        "ModelSpec.output_bias",
        "ModelSpec.logit_softcap",
        "LayerSpec.mixer=Attention",
        "LayerSpec.mixer=DeltaNet",
        "LayerSpec.mixer=ShortConv",
        "LayerSpec.mixer=Mamba2",
        "LayerSpec.beside=Mamba2",
        "LayerSpec.multipliers",
        "LayerSpec.feed_forward=GatedMLP",
        "LayerSpec.feed_forward=MLP",
        "LayerSpec.feed_forward=MoE",
        "LayerSpec.feed_forward=None",
        "LayerSpec.mixer_norm=Norm",
        "LayerSpec.ffn_norm=Norm",
        "LayerSpec.residual_scale",
        "LayerSpec.input_scale",
        "LayerSpec.mixer_norm=None",
        "LayerSpec.ffn_norm=None",
        "LayerSpec.mixer_post_norm=Norm",
        "LayerSpec.ffn_post_norm=Norm",
        "LayerSpec.parallel",
        "Norm.offset",
        "Norm.centred",
        "Norm.weighted",
        "Norm.bias",
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
        "Attention.norm_whole",
        "Attention.norm_after_rope",
        "Attention.softcap",
        "Attention.clip",
        "Attention.norm_gain",
        "Attention.value_scale",
        "Attention.window",
        "Attention.sinks",
        "Attention.alibi",
        "Attention.value_dim",
        "Rope.dims",
        "Rope.backwards",
        "Rope.pairs=half",
        "Rope.pairs=interleaved",
        "Rope.scaling=LinearScaling",
        "Rope.scaling=YarnScaling",
        "Rope.scaling=Llama3Scaling",
        "Rope.scaling=FactorScaling",
        "Rope.scaling=LongRopeScaling",
        "LongRopeScaling.attention_factor",
        "YarnScaling.beta_fast",
        "YarnScaling.beta_slow",
        "YarnScaling.attention_factor",
        "YarnScaling.truncate",
        "DeltaNet.norm=Norm",
        "DeltaNet.decay=log",
        "DeltaNet.decay=rate",
        "ShortConv.bias",
        "Mamba2.norm=Norm",
        "Mamba2.norm_first",
        "Mamba2.decay=log",
        "Mamba2.decay=rate",
        "Mamba2.conv_bias",
        "Mamba2.bias=in",
        "Mamba2.bias=o",
        "Mamba2.step_limit",
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
        "MLP.activation=xielu",
        "MLP.bias=up",
        "MLP.bias=down",
        "MoE.router=Router",
        "MoE.shared=SharedExpert",
        "MoE.bias=gate",
        "MoE.bias=up",
        "MoE.bias=down",
        "MoE.clamped=ClampedSwiGLU",
        "Router.normalised=true",
        "Router.normalised=false",
        "Router.score=softmax",
        "Router.score=sigmoid",
        "Router.scale",
        "Router.selection_bias",
        "Router.score_bias",
        "Router.sum_eps",
        "Router.logit_bias",
        "SharedExpert.gated=true",
        "SharedExpert.gated=false",
    }
)
"""The features (`model.features`) that the forward pass computes."""


class Reference:
    """A model's weights, and its forward pass.

    `dtype` is the type of weights and arithmetic: llama.cpp computes in float32; against float64 a comparison shows
    llama.cpp's rounding only. The weights are in memory, or, `streamed`, those outside the layers and one layer at a time, which
    every forward pass reads again.
    """

    def __init__(self, model: Model, dtype: torch.dtype = torch.float32, *, streamed: bool = False) -> None:
        """Read the weights. Raises UnsupportedError for a model with a feature that the forward pass does not support."""
        lacking = undeclared(model.spec.features, EXPRESSES)
        if lacking:
            raise UnsupportedError(
                f"the torch reference does not support {', '.join(lacking)}, which this {model.family} model has"
            )
        self.spec = model.spec
        self.dtype = dtype
        self.weights = load_all(model.tensors, dtype)
        self.layers: Sequence[Weights] = (
            StreamedLayers(model.layers, dtype) if streamed else [load_layer(layer, dtype) for layer in model.layers]
        )
        self._limits = frequency_limits(model.spec)

    @classmethod
    def assembled(cls, spec: ModelSpec, weights: Weights, layers: Sequence[Weights], dtype: torch.dtype) -> Reference:
        """A reference over weights that are in memory: those outside the layers, and those of each layer.

        The caller answers for the shapes, and for features that the forward pass computes. The output projection may have
        fewer rows than the vocabulary; the logits then are those of these rows.
        """
        self = cls.__new__(cls)
        self.spec, self.dtype, self.weights, self.layers = spec, dtype, weights, list(layers)
        self._limits = frequency_limits(spec)
        return self

    def changed(self, spec: ModelSpec, weights: Weights) -> Reference:
        """A reference with the same layers, and another spec and other weights outside them."""
        return Reference.assembled(spec, weights, self.layers, self.dtype)

    def logits(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
        """Logits of every position of each sequence, as arrays of shape (length, vocab_size).

        With LongRoPE, whose frequencies depend on the length, sequences run together only if they have the same.
        """
        groups: dict[tuple[bool, ...], list[int]] = {}
        for n, sequence in enumerate(sequences):
            groups.setdefault(tuple(len(sequence) > limit for limit in self._limits), []).append(n)
        found: dict[int, NDArray[np.floating]] = {}
        for members in groups.values():
            found |= zip(members, self._together([sequences[n] for n in members]), strict=True)
        return [found[n] for n in range(len(sequences))]

    def _together(self, sequences: Sequence[Sequence[int]]) -> list[NDArray[np.floating]]:
        """`logits` of sequences that run in one batch."""
        longest = max(map(len, sequences))
        tokens = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(list(sequence))
        with torch.inference_mode():
            hidden = self.forward(tokens)
            return [self.head(hidden[row, : len(sequence)]).numpy() for row, sequence in enumerate(sequences)]

    def blocks(
        self, tokens: Sequence[int], size: int, progress: CountProgress | None = None
    ) -> Iterator[NDArray[np.floating]]:
        """The logits of one sequence, `size` positions at a time, shape (size or fewer, vocab_size).

        Besides the weights, memory holds the residual stream of all positions, the keys and values of one layer, and what one
        block takes. The results are those of `logits` up to rounding. `progress` counts the layers that have read the sequence.
        """
        x = self._through(torch.tensor([list(tokens)]), size, progress)
        for start in range(0, x.shape[1], size):
            yield self._logits_of(x[:, start : start + size])

    @torch.inference_mode()
    def _through(self, tokens: torch.Tensor, size: int, progress: CountProgress | None) -> torch.Tensor:
        """The residual stream after the last layer, (1, length, hidden), each layer having read `size` positions at a time."""
        x = self.embed(tokens)
        for n, layer in enumerate(self.spec.layers):
            past = Past(x.shape[1])
            for start in range(0, x.shape[1], size):
                part = x[:, start : start + size]
                x[:, start : start + size] = self.layer(n, layer, part, past=past)
                past.advance(part.shape[1])
            if progress:
                progress(n + 1, len(self.spec.layers))
        return x

    @torch.inference_mode()
    def _logits_of(self, x: torch.Tensor) -> NDArray[np.floating]:
        result: NDArray[np.floating] = self.head(self.final_norm(x))[0].numpy()
        return result

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, shape (…, vocab_size), of final normed hidden states (…, hidden)."""
        matrix = self.weights["embedding" if self.spec.tied else "output"]
        logits = functional.linear(hidden, matrix, self.weights.get("output_bias")) * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return cap * (logits / cap).tanh() if cap else logits

    def forward(self, tokens: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """Final normed hidden states, shape (batch, length, hidden), of tokens (batch, length)."""
        x = self.embed(tokens)
        if observe:
            observe(OUTSIDE, "embedding", x)
        for n, layer in enumerate(self.spec.layers):
            x = self.layer(n, layer, x, observe)
        return self.final_norm(x, observe)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the first layer reads, shape (batch, length, hidden), of tokens (batch, length)."""
        x = functional.embedding(tokens, self.weights["embedding"]) * self.spec.embedding_scale
        x = normed(x, self.spec.embedding_norm, self.weights, "embedding_norm")
        return x + self.weights["positions"][: tokens.shape[1]] if self.spec.positions else x

    def final_norm(self, x: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """The residual stream after the last layer, shape (batch, length, hidden), normed; the logits are observed too."""
        x = normed(x, self.spec.output_norm, self.weights, "output_norm")
        if observe:
            observe(OUTSIDE, "final_norm", x)
            observe(OUTSIDE, "logits", self.head(x))
        return x

    def layer(
        self, n: int, layer: LayerSpec, x: torch.Tensor, observer: Observer | None = None, past: Past | None = None
    ) -> torch.Tensor:
        """Layer n on the residual stream x, shape (batch, length, hidden), which follows what `past` holds."""
        weights = self.layers[n]
        observe: Observe = partial(observer, n) if observer else unobserved
        x = x * layer.input_scale
        read = normed(x, layer.mixer_norm, weights, "mixer_norm")
        observe("mixer_norm", read)
        mixed = mix(layer.mixer, weights, read, observe, past)
        if layer.beside:
            mixed = mixed + mamba2(layer.beside, weights, read, observe, past)
        observe("mixer_out", mixed)
        mixed = normed(mixed, layer.mixer_post_norm, weights, "mixer_post_norm")
        observe("mixer_post_norm", mixed)
        before, x = x, x + mixed * layer.residual_scale
        if not layer.parallel:
            before = x
            observe("mixer_residual", x)
        ffn = layer.feed_forward
        if ffn:
            if layer.ffn_norm or not layer.parallel:
                read = normed(before, layer.ffn_norm, weights, "ffn_norm")
            observe("ffn_norm", read)
            out = moe(ffn, weights, read, observe) if isinstance(ffn, MoE) else dense(ffn, weights, read, observe)
            observe("ffn_out", out)
            out = normed(out, layer.ffn_post_norm, weights, "ffn_post_norm")
            observe("ffn_post_norm", out)
            x = x + out * layer.residual_scale
        observe("layer_out", x)
        return x


def frequency_limits(spec: ModelSpec) -> list[int]:
    """The lengths beyond which some layer's rope has other frequencies (LongRoPE)."""
    ropes = {layer.mixer.rope for layer in spec.layers if isinstance(layer.mixer, Attention) and layer.mixer.rope}
    scalings = [rope.scaling for rope in ropes if isinstance(rope.scaling, LongRopeScaling)]
    return sorted({scaling.original_context for scaling in scalings})


def mix(
    mixer: Mixer, weights: Weights, x: torch.Tensor, observe: Observe = unobserved, past: Past | None = None
) -> torch.Tensor:
    """What the mixer makes of the normed activations x after those that `past` holds; both are (batch, length, hidden)."""
    if isinstance(mixer, Attention):
        return attention(mixer, weights, x, observe, past)
    if isinstance(mixer, ShortConv):
        return short_conv(mixer, weights, x, observe, past)
    if isinstance(mixer, Mamba2):
        return mamba2(mixer, weights, x, observe, past)
    return delta_net(mixer, weights, x, observe, past)
