"""Feed-forward blocks on activations of shape (batch, length, hidden)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn import functional

from gguf_tools.model.feed_forward import XIELU
from gguf_tools.model.spec import MLP, Activation, GatedMLP, MoE, Router
from gguf_tools.reference.observe import Observe, unobserved
from gguf_tools.reference.weights import Weights

ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


def swiglu(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, observe: Observe = unobserved
) -> torch.Tensor:
    """down(SiLU(gate x) ⊙ up x) (Shazeer 2020); the points observed are gate, up, act and down."""
    gated, upped = functional.linear(x, gate), functional.linear(x, up)
    observe("gate", gated)
    observe("up", upped)
    inner = functional.silu(gated) * upped
    observe("act", inner)
    out = functional.linear(inner, down)
    observe("down", out)
    return out


def dense(spec: GatedMLP | MLP, weights: Weights, x: torch.Tensor, observe: Observe = unobserved) -> torch.Tensor:
    """The dense feed-forward with optional biases; x and the result have shape (batch, length, hidden)."""
    activation = partial(xielu, weights) if spec.activation == "xielu" else ACTIVATIONS[spec.activation]

    def project(name: str, y: torch.Tensor) -> torch.Tensor:
        product = functional.linear(y, weights[f"ffn.{name}"])
        observe(f"ffn.{name}_product", product)
        out = product + weights[f"ffn.{name}_bias"] if f"ffn.{name}_bias" in weights else product
        observe(f"ffn.{name}", out)
        return out

    gate = project("up" if isinstance(spec, MLP) else "gate", x)
    inner = activation(gate) if isinstance(spec, MLP) else activation(gate) * project("up", x)
    observe("ffn.act", inner)
    return project("down", inner)


def xielu(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """xIELU (Huang and Schlag 2024) with the layer's four numbers."""
    alpha_p, alpha_n, beta, eps = (weights[f"ffn.{name}"] for name in XIELU)
    positive = functional.softplus(alpha_p) * x * x + beta * x
    negative = (torch.expm1(torch.minimum(x, eps)) - x) * (beta + functional.softplus(alpha_n)) + beta * x
    return torch.where(x > 0, positive, negative)


def route(router: Router, logits: torch.Tensor, bias: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Selected experts and their weights, both of shape (tokens, top_k), from router logits (tokens, experts).

    `bias`, shape (experts,), is added to the logits, or with `score_bias` to the scores, for the selection only; the weights
    do not depend on it.
    """
    every = logits.softmax(-1) if router.score == "softmax" else logits.sigmoid()
    measure = every if router.score_bias else logits
    chosen = (measure if bias is None else measure + bias).topk(router.top_k, dim=-1).indices
    scores = every.gather(-1, chosen)
    if router.normalised:
        scores = scores / (scores.sum(-1, keepdim=True) + router.sum_eps)
    return chosen, scores * router.scale


def _expert(spec: MoE, weights: Weights, expert: int, x: torch.Tensor, observe: Observe = unobserved) -> torch.Tensor:
    """What one routed expert makes of x, shape (…, hidden); the points observed are those of `swiglu`, biases added or not."""

    def project(name: str, y: torch.Tensor) -> torch.Tensor:
        out = functional.linear(y, weights[f"moe.{name}"][expert])
        observe(name, out)
        if name in spec.bias:
            out = out + weights[f"moe.{name}_bias"][expert]
            observe(f"{name}_biased", out)
        return out

    gate, up = project("gate", x), project("up", x)
    if spec.clamped:
        gate, up = gate.clamp(max=spec.clamped.limit), up.clamp(-spec.clamped.limit, spec.clamped.limit)
        inner = gate * (spec.clamped.slope * gate).sigmoid() * (up + 1)
    else:
        inner = functional.silu(gate) * up
    observe("act", inner)
    return project("down", inner)


def moe(spec: MoE, weights: Weights, x: torch.Tensor, observe: Observe = unobserved) -> torch.Tensor:
    """Mixture of experts without capacity limits, plus the shared expert if there is one (batch, length, hidden)."""
    tokens = x.reshape(-1, x.shape[-1])
    logits = functional.linear(tokens, weights["moe.router"], weights.get("moe.logit_bias"))
    chosen, scores = route(spec.router, logits, weights.get("moe.router_bias"))
    for point, values in (("logits", logits), ("chosen", chosen), ("weights", scores)):
        observe(f"moe.{point}", values.view(*x.shape[:-1], -1))
    if observe is not unobserved:
        _observe_experts(spec, weights, tokens, chosen, _shaped(observe, x))
    out = torch.zeros_like(tokens)
    for expert in range(spec.experts):
        rows, slots = torch.where(chosen == expert)
        if len(rows):
            out.index_add_(0, rows, _expert(spec, weights, expert, tokens[rows]) * scores[rows, slots, None])
    observe("moe.out", out.view_as(x))
    if spec.shared:
        gate, up, down = (weights[f"shared.{name}"] for name in ("gate", "up", "down"))
        shared = swiglu(tokens, gate, up, down, _shaped(observe, x, "shared."))
        if spec.shared.gated:
            logit = (tokens @ weights["shared.sigmoid"])[:, None]
            observe("shared.sigmoid", logit.view(*x.shape[:-1], 1))
            shared = shared * logit.sigmoid()
            observe("shared.gated", shared.view_as(x))
        out = out + shared
    return out.view_as(x)


def _shaped(observe: Observe, x: torch.Tensor, prefix: str = "") -> Observe:
    """An observer of activations (tokens, …), which become those of x, shape (batch, length, hidden)."""
    return lambda point, values: observe(prefix + point, values.view(*x.shape[:-1], *values.shape[1:]))


def _observe_experts(spec: MoE, weights: Weights, tokens: torch.Tensor, chosen: torch.Tensor, observe: Observe) -> None:
    """The activations of the selected experts, shape (tokens, top_k, …), in the order in which they were selected."""
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for token, experts in zip(tokens, chosen, strict=True):
        for expert in experts:
            _expert(spec, weights, int(expert), token, lambda point, values: found[point].append(values))
    for point, values in found.items():
        observe(f"expert.{point}", torch.stack(values).view(*chosen.shape, -1))
