"""RMS norm and layer norm."""

from __future__ import annotations

import torch

from gguf_tools.model.spec import Norm
from gguf_tools.reference.weights import Weights


def normed(x: torch.Tensor, norm: Norm | None, weights: Weights, role: str) -> torch.Tensor:
    """x normed over the last axis by the weights and the bias under `role`; x itself where there is no norm."""
    if norm is None:
        return x
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    x = x * (weights[role] + norm.offset) if norm.weighted else x
    return x + weights[f"{role}_bias"] if norm.bias else x
