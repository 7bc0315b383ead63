"""Token mixers with a short memory, on activations of shape (batch, length, hidden)."""

from __future__ import annotations

import torch
from torch.nn import functional

from gguf_tools.model.spec import ShortConv
from gguf_tools.reference.observe import Observe, unobserved
from gguf_tools.reference.weights import Weights


def short_conv(spec: ShortConv, weights: Weights, x: torch.Tensor, observe: Observe = unobserved) -> torch.Tensor:
    """Gated short convolution of LFM2; x and the result have shape (batch, length, hidden)."""
    projected = functional.linear(x, weights["conv.in"], weights.get("conv.in_bias"))
    observe("conv.in", projected)
    gate, after, values = projected.chunk(3, dim=-1)
    observe("conv.gated", gate * values)
    conv = causal_conv(gate * values, weights["conv.kernel"], weights.get("conv.kernel_bias"))
    observe("conv.conv", conv)
    observe("conv.after", after * conv)
    return functional.linear(after * conv, weights["conv.o"], weights.get("conv.o_bias"))


def causal_conv(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Each channel of x, shape (batch, length, channels), convolved with its row of `kernel` (channels, tokens).

    The last weight of a row belongs to the token itself; before the first token the input is 0.
    """
    padded = functional.pad(x.transpose(1, 2), (kernel.shape[1] - 1, 0))
    return functional.conv1d(padded, kernel[:, None, :], bias, groups=kernel.shape[0]).transpose(1, 2)
