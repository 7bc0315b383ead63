"""Decoders whose weights are laid out unlike those of most: for each head by itself, in one list, with an axis for the heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.description.decoders import HIDDEN, VOCAB, Shapes, attend

HEADS, DIM, LENGTH = 4, 12, 160


class Head(nn.Module):
    """A head with three projections and its mask; scores are divided by √hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(HIDDEN, DIM, bias=False) for _ in range(3))
        self.register_buffer("seen", torch.tril(torch.ones(LENGTH, LENGTH)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part(x)[None] for part in (self.query, self.key, self.value))
        return attend(q, k, v, HIDDEN**-0.5)


class Block(nn.Module):
    """Attention of several heads, and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head() for _ in range(HEADS)])
        self.join = nn.Linear(HIDDEN, HIDDEN)
        self.net = nn.Sequential(nn.Linear(HIDDEN, 96), nn.ReLU(), nn.Linear(96, HIDDEN))
        self.g1, self.g2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.g1(x)
        x = x + self.join(torch.cat([head(y) for head in self.heads], -1))
        out: torch.Tensor = x + self.net(self.g2(x))
        return out


class Listed(nn.Module):
    """Everything in one list, the layers from 2 on; the output has a bias."""

    def __init__(self) -> None:
        super().__init__()
        g = nn.LayerNorm(HIDDEN)
        places, tokens = nn.Embedding(LENGTH, HIDDEN), nn.Embedding(VOCAB, HIDDEN)
        self.parts = nn.ModuleList([tokens, places, Block(), Block(), g, nn.Linear(HIDDEN, VOCAB)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedding, places, *rest = self.parts
        x = embedding(tokens) + places(torch.arange(len(tokens)))
        for part in rest:
            x = part(x)
        result: torch.Tensor = x
        return result


class Axes(nn.Module):
    """Matrices as (heads, in, out) and (in, out), all parameters of a layer and all outside the layers in one module."""

    def __init__(self) -> None:
        super().__init__()
        outside: Shapes = {
            "W_e": (VOCAB, HIDDEN),
            "W_p": (LENGTH, HIDDEN),
            "W_u": (HIDDEN, VOCAB),
            "g_w": (HIDDEN,),
            "g_b": (HIDDEN,),
        }
        layer: Shapes = {"W_o": (HEADS, DIM, HIDDEN)}
        layer |= {f"W_{n}": (HEADS, HIDDEN, DIM) for n in "qkv"}
        layer |= {f"b_{n}": (HEADS, DIM) for n in "qkv"} | {"b_o": (HIDDEN,)}
        layer |= {"W_in": (HIDDEN, 96), "b_in": (96,), "W_out": (96, HIDDEN), "b_out": (HIDDEN,)}
        layer |= {f"g{n}_{part}": (HIDDEN,) for n in "12" for part in "wb"}
        shapes = outside | {f"layer.{n}.{name}": shape for n in (1, 2) for name, shape in layer.items()}
        self.w = {name: nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        w = self.w
        x = w["W_e"][tokens] + w["W_p"][: len(tokens)]
        for p in ("layer.1.", "layer.2."):
            y = functional.layer_norm(x, (HIDDEN,), w[p + "g1_w"], w[p + "g1_b"])
            q, k, v = (torch.einsum("sd,hde->hse", y, w[f"{p}W_{n}"]) + w[f"{p}b_{n}"][:, None] for n in "qkv")
            mixed = attend(q, k, v, DIM**-0.5).view(-1, HEADS, DIM)
            x = x + torch.einsum("she,hed->sd", mixed, w[p + "W_o"]) + w[p + "b_o"]
            y = functional.layer_norm(x, (HIDDEN,), w[p + "g2_w"], w[p + "g2_b"])
            x = x + functional.gelu(y @ w[p + "W_in"] + w[p + "b_in"]) @ w[p + "W_out"] + w[p + "b_out"]
        return functional.layer_norm(x, (HIDDEN,), w["g_w"], w["g_b"]) @ w["W_u"]


def filled(weights: dict[str, torch.Tensor]) -> None:
    """Random weights of the size of trained ones, in place: those of norms (with g in their name) are near 1."""
    for n, (name, weight) in enumerate(weights.items()):
        noise = torch.from_numpy(np.random.default_rng([7, n]).standard_normal(tuple(weight.shape))).float()
        if weight.dim() > 1:
            size = 0.6 if VOCAB in weight.shape else 1.2 / HIDDEN**0.5
            weight.copy_(noise * size)
        else:
            weight.copy_(0.2 * noise + (0 if name.endswith(("bias", "_b", "b_o", "b_in", "b_out")) else 1))
