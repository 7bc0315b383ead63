"""RMS norm."""

from __future__ import annotations

import torch

from gguf_tools.model.spec import Norm


def rms_norm(x: torch.Tensor, weight: torch.Tensor, norm: Norm) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · (weight + offset) over the last axis."""
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps)
    return x * scale * (weight + norm.offset)
