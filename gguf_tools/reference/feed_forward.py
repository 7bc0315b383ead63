"""Feed-forward blocks on activations of shape (batch, length, hidden)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn import functional

from gguf_tools.model.spec import MLP, Activation, GatedMLP, MoE, Router
from gguf_tools.reference.weights import Weights

ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """down(SiLU(gate x) ⊙ up x) (Shazeer 2020)."""
    return functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)


def dense(spec: GatedMLP | MLP, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """The dense feed-forward with optional biases; x and the result have shape (batch, length, hidden)."""
    activation = ACTIVATIONS[spec.activation]

    def project(name: str, y: torch.Tensor) -> torch.Tensor:
        return functional.linear(y, weights[f"ffn.{name}"], weights.get(f"ffn.{name}_bias"))

    if isinstance(spec, MLP):
        return project("down", activation(project("up", x)))
    return project("down", activation(project("gate", x)) * project("up", x))


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
        scores = scores / scores.sum(-1, keepdim=True)
    return chosen, scores * router.scale


def moe(spec: MoE, weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Mixture of experts without capacity limits, plus the shared expert if there is one (batch, length, hidden)."""
    tokens = x.reshape(-1, x.shape[-1])
    chosen, scores = route(
        spec.router, functional.linear(tokens, weights["moe.router"]), weights.get("moe.router_bias")
    )
    out = torch.zeros_like(tokens)
    for expert in range(spec.experts):
        rows, slots = torch.where(chosen == expert)
        if len(rows):
            gate, up, down = (weights[f"moe.{name}"][expert] for name in ("gate", "up", "down"))
            out.index_add_(0, rows, swiglu(tokens[rows], gate, up, down) * scores[rows, slots, None])
    if spec.shared:
        shared = swiglu(tokens, weights["shared.gate"], weights["shared.up"], weights["shared.down"])
        if spec.shared.gated:
            shared = shared * (tokens @ weights["shared.sigmoid"]).sigmoid()[:, None]
        out = out + shared
    return out.view_as(x)
