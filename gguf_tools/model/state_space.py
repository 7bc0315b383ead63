"""Mixers with short convolutions and state spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gguf_tools.model.features import choice, option, size
from gguf_tools.model.norms import Norm, Shape


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


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """Mamba-2 (Dao and Gu 2024): a state space with one decay per head.

    Five projections of the input give z and x (heads · head_dim each), B and C (groups · state each) and a step per head. x, B
    and C, side by side, pass a causal depthwise convolution (with a bias if `conv_bias`) and SiLU. With
    d = softplus(step + dt_bias), limited to `step_limit`, the state of a head, (head_dim, state), becomes
    exp(decay · d) · state + d · x ⊗ B, and the head gives state · C + skip · x; head h uses B and C of group
    h // (heads / groups). decay is -exp(weight) for "log" and the weight itself for "rate". The output, times SiLU(z), is
    RMS-normalised over each group's heads, if there is a `norm`, and projected; with `norm_first` it is normalised before it is
    multiplied by SiLU(z). `bias` names the projections with a bias: `in` for the five of the input, `o` for that of the output.
    """

    heads: int = size()
    head_dim: int = size()
    groups: int = size()
    state: int = size()
    kernel: int = size()
    norm: Norm | None = option("a norm of the state space's output")
    norm_first: bool = option("a norm of the state space's output before its gate", False)
    decay: Literal["log", "rate"] = choice(lambda decay, _: f"decays of the state space stored as a {decay}", "log")
    conv_bias: bool = option("a bias of the state space's convolution", False)
    bias: frozenset[str] = option(
        lambda name, _: f"biases on the state space's {'input' if name == 'in' else 'output'} projection", frozenset()
    )
    step_limit: tuple[float, float] | None = option("limited steps of the state space")

    @property
    def inner(self) -> int:
        """The width of z and of x."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution: those of x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def widths(self) -> dict[str, int]:
        """The projections of the input by the last part of their role, and their widths, in the order of the published files."""
        wide = self.groups * self.state
        return {"z": self.inner, "x": self.inner, "b": wide, "c": wide, "step": self.heads}

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {f"ssm.{name}": (width, hidden) for name, width in self.widths.items()}
        if "in" in self.bias:
            roles |= {f"{role}_bias": shape[:1] for role, shape in roles.items()}
        roles |= {"ssm.conv": (self.channels, self.kernel)}
        roles |= {"ssm.conv_bias": (self.channels,)} if self.conv_bias else {}
        roles |= {"ssm.dt_bias": (self.heads,), "ssm.decay": (self.heads,), "ssm.skip": (self.heads,)}
        roles |= self.norm.roles("ssm.norm", self.inner) if self.norm else {}
        return roles | {"ssm.o": (hidden, self.inner)} | ({"ssm.o_bias": (hidden,)} if "o" in self.bias else {})
