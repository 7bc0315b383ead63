"""Norms: how activations are normalised before, within and after the parts of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.model.features import option, size

Shape = tuple[int, ...]
"""The shape of a tensor, row-major."""


@dataclass(frozen=True)
class Norm:
    """RMS norm: x / sqrt(mean(x²) + eps) · (weight + offset)."""

    eps: float = size()
    offset: float = option(lambda offset, _: f"norm weights stored minus {offset:g}", 0.0)
