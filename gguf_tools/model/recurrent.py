"""Mixers with a state in place of a key/value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gguf_tools.model.features import choice, part, size
from gguf_tools.model.norms import Norm, Shape


@dataclass(frozen=True, kw_only=True)
class DeltaNet:
    """Gated DeltaNet (Yang et al. 2024), in the form of Qwen3-Next.

    q, k, v pass a causal depthwise convolution and SiLU; q and k are normalised to unit length with `l2_eps`; value head v
    uses key head v // (value_heads / key_heads). The state is multiplied at each step by
    exp(decay · softplus(alpha + dt_bias)), where decay is -exp(weight) for "log" and the weight itself for "rate".
    The output is RMS-normalised per head, multiplied by SiLU(z), and projected.
    """

    key_heads: int = size()
    value_heads: int = size()
    key_dim: int = size()
    value_dim: int = size()
    kernel: int = size()
    norm: Norm = part("the norm of linear attention's output")
    decay: Literal["log", "rate"] = choice(lambda decay, _: f"decays of linear attention stored as a {decay}", "log")
    l2_eps: float = size(1e-6)

    @property
    def channels(self) -> int:
        """Channels of the convolution: those of q, k and v together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        key, value = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        return {
            "delta.q": (key, hidden),
            "delta.k": (key, hidden),
            "delta.v": (value, hidden),
            "delta.z": (value, hidden),
            "delta.beta": (self.value_heads, hidden),
            "delta.alpha": (self.value_heads, hidden),
            "delta.conv": (self.channels, self.kernel),
            "delta.decay": (self.value_heads,),
            "delta.dt_bias": (self.value_heads,),
            **self.norm.roles("delta.norm", self.value_dim),
            "delta.o": (hidden, value),
        }
