"""Norms: how activations are normalised before, within and after the parts of a layer."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.model.features import option, size

Shape = tuple[int, ...]
"""The shape of a tensor, row-major."""


@dataclass(frozen=True)
class Norm:
    """RMS norm (Zhang and Sennrich 2019): x / sqrt(mean(x²) + eps) · (weight + offset) + bias.

    With `centred` the mean is subtracted from x first, which makes it the layer norm (Ba et al. 2016). Without `weighted`
    there are no weights to multiply with, and only with `bias` is one added.
    """

    eps: float = size()
    offset: float = option(lambda offset, _: f"norm weights stored minus {offset:g}", 0.0)
    centred: bool = option("layer norms (which subtract the mean)", False)
    weighted: bool = option("norms without weights", True)
    bias: bool = option("biases in the norms", False)

    def roles(self, role: str, *shape: int) -> dict[str, Shape]:
        """The roles and shapes of the tensors of the norm `role`: its weights, and its bias under `role`_bias."""
        return ({role: shape} if self.weighted else {}) | ({f"{role}_bias": shape} if self.bias else {})
