"""Mixers whose state is a few past inputs of a convolution."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_tools.model.features import option, size
from gguf_tools.model.norms import Shape


@dataclass(frozen=True)
class ShortConv:
    """Gated short convolution (LFM2, Liquid AI 2025): o(c ⊙ conv(b ⊙ x)).

    b, c and x are the three parts, in this order, of the projection `conv.in`. conv is a causal depthwise convolution with
    weights for `kernel` tokens of each channel, the token's own last; nothing comes before the first token. With `bias` the
    two projections and the convolution have biases.
    """

    kernel: int = size()
    bias: bool = option("biases in the short convolution", False)

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {
            "conv.in": (3 * hidden, hidden),
            "conv.kernel": (hidden, self.kernel),
            "conv.o": (hidden, hidden),
        }
        return roles | ({f"{role}_bias": shape[:1] for role, shape in roles.items()} if self.bias else {})
