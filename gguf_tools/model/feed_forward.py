"""Feed-forwards: dense, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gguf_tools.model.features import Place, choice, option, part, size
from gguf_tools.model.norms import Shape

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
ACTIVATIONS: Mapping[str, str] = {
    "silu": "SiLU",
    "gelu": "GELU",
    "gelu_tanh": "GELU by its tanh approximation",
    "relu": "ReLU",
    "relu2": "squared ReLU",
    "xielu": "xIELU",
}
"""Activation → what it is called: SiLU(z) = z · sigmoid(z); GELU is z · Φ(z) with the normal distribution's Φ (Hendrycks and
Gimpel 2016), or its approximation by tanh; the squared ReLU is max(z, 0)² (So et al. 2021).
xIELU (Huang and Schlag 2024) is αp · z² + β · z for z > 0 and αn · (expm1(min(z, ε)) - z) + β · z elsewhere, with αp =
softplus(`alpha_p`) and αn = β + softplus(`alpha_n`); the four numbers are weights of the layer."""
XIELU = ("alpha_p", "alpha_n", "beta", "eps")
"""The weights of xIELU, one number each, by the rest of their role after `ffn.`."""


def _activation(activation: str, _: Place) -> str:
    return f"{ACTIVATIONS[activation]} in the feed-forward"


@dataclass(frozen=True)
class GatedMLP:
    """Dense feed-forward: down(activation(gate x) ⊙ up x) (Shazeer 2020). `bias` names the projections that have one (of
    gate, up, down)."""

    width: int = size()
    bias: frozenset[str] = option("biases in the feed-forward", frozenset())
    activation: Activation = choice(_activation, "silu")

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {
            "ffn.gate": (self.width, hidden),
            "ffn.up": (self.width, hidden),
            "ffn.down": (hidden, self.width),
        }
        for name in sorted(self.bias):
            roles[f"ffn.{name}_bias"] = roles[f"ffn.{name}"][:1]
        return roles


@dataclass(frozen=True)
class MLP:
    """Dense feed-forward without a gate: down(activation(up x)). `bias` names the projections that have one (of up, down)."""

    width: int = size()
    activation: Activation = choice(_activation)
    bias: frozenset[str] = option("biases in the feed-forward", frozenset())

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {"ffn.up": (self.width, hidden), "ffn.down": (hidden, self.width)}
        roles |= {f"ffn.{name}": (1,) for name in XIELU} if self.activation == "xielu" else {}
        for name in sorted(self.bias):
            roles[f"ffn.{name}_bias"] = roles[f"ffn.{name}"][:1]
        return roles


_NORMALISED = {
    True: "router weights renormalised (norm_topk_prob true)",
    False: "router weights that are not renormalised (norm_topk_prob false)",
}


@dataclass(frozen=True, kw_only=True)
class Router:
    """How experts are selected and weighted.

    `score` turns the logits into weights: a softmax over all experts, or a sigmoid per expert. The `top_k` experts with the
    largest logits are selected; with `selection_bias`, those with the largest logit + bias, and with `score_bias` those with
    the largest weight + bias, where the bias affects the selection only and not the weights. The weights of the selected
    experts are divided by their sum plus `sum_eps` if `normalised`, and multiplied by `scale`. `logit_bias` is a bias on the
    logits, for the selection and the weights.
    """

    top_k: int = size()
    normalised: bool = choice(lambda normalised, _: _NORMALISED[normalised], True)
    scale: float = option("scaled router weights", 1.0)
    score: Literal["softmax", "sigmoid"] = choice(lambda score, _: f"a {score} router", "softmax")
    selection_bias: bool = option("a router bias added before the score function, for the selection alone", False)
    score_bias: bool = option("a router bias added after the score function, for the selection alone", False)
    sum_eps: float = option(
        lambda eps, _: f"router weights divided by their sum plus {eps:g}", 0.0, neutral=lambda eps, _: eps < 1e-12
    )
    logit_bias: bool = option("a bias on the router's logits", False)


@dataclass(frozen=True)
class SharedExpert:
    """An expert applied to every token; `gated` multiplies its output by the sigmoid of one logit per token."""

    width: int = size()
    gated: bool = choice(lambda gated, _: "a gate on the shared expert" if gated else "a shared expert without a gate")


@dataclass(frozen=True)
class ClampedSwiGLU:
    """gpt-oss's gate (OpenAI 2025): g · sigmoid(slope · g) · (u + 1), with g at most `limit` and u within ± `limit`."""

    slope: float = size()
    limit: float = size()


@dataclass(frozen=True)
class MoE:
    """Mixture of experts: `experts` gated MLPs of `width`, with an optional shared expert.

    `bias` names the projections of the routed experts that have one (of gate, up, down). With `clamped` the routed experts have
    that gate in place of SwiGLU.
    """

    experts: int = size()
    width: int = size()
    router: Router = part("routed experts")
    shared: SharedExpert | None = option("a shared expert")
    bias: frozenset[str] = option("biases on experts", frozenset())
    clamped: ClampedSwiGLU | None = option("experts with a clamped gate")

    def roles(self, hidden: int) -> dict[str, Shape]:
        """Role names, relative to the layer, and shapes."""
        roles: dict[str, Shape] = {
            "moe.router": (self.experts, hidden),
            "moe.gate": (self.experts, self.width, hidden),
            "moe.up": (self.experts, self.width, hidden),
            "moe.down": (self.experts, hidden, self.width),
        }
        for name in sorted(self.bias):
            roles[f"moe.{name}_bias"] = roles[f"moe.{name}"][:2]
        if self.router.logit_bias:
            roles["moe.logit_bias"] = (self.experts,)
        if self.router.selection_bias or self.router.score_bias:
            roles["moe.router_bias"] = (self.experts,)
        if self.shared:
            width = self.shared.width
            roles |= {"shared.gate": (width, hidden), "shared.up": (width, hidden), "shared.down": (hidden, width)}
            if self.shared.gated:
                roles["shared.sigmoid"] = (hidden,)
        return roles
