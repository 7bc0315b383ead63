"""Eight decoders of invented code: the names are unlike those of any family, and each computes something of its own.

Each is a function of weights by name and a list of tokens, in plain torch; weights are random, of the size of trained ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

VOCAB, HIDDEN, LAYERS, HEADS, DIM, FF, CONTEXT = 280, 48, 2, 4, 12, 80, 160
Weights = Mapping[str, torch.Tensor]
Forward = Callable[[Weights, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Decoder:
    """Names and shapes of the weights, those of norms marked by their mean, and the forward pass."""

    shapes: Mapping[str, tuple[int, ...]]
    forward: Forward
    spread: float = 1.0

    def weights(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random weights: vectors called `g…` are near 1, other vectors near 0, matrices keep the size of their input."""
        made = {}
        for n, (name, shape) in enumerate(self.shapes.items()):
            noise = torch.from_numpy(np.random.default_rng([seed, n]).standard_normal(shape)).float()
            leaf = name.rpartition(".")[2]
            if leaf.startswith("g"):
                made[name] = 1 + 0.3 * noise
            elif leaf.startswith("s"):  # the model adds 1
                made[name] = 0.3 * noise
            elif len(shape) == 1:
                made[name] = 0.2 * noise
            else:
                made[name] = noise * (0.6 if name.startswith("zu") else 1.2 / shape[-1] ** 0.5) * self.spread
        return made

    def logits(self, weights: Weights, tokens: list[int]) -> NDArray[np.float32]:
        """The logits of a sequence, in float32."""
        with torch.no_grad():
            return self.forward(weights, torch.tensor(tokens)).float().numpy()


def rms(x: torch.Tensor, w: torch.Tensor | float = 1.0, eps: float = 1e-6) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w


def turn(x: torch.Tensor, base: float, dims: int, mixed: bool = False, sign: int = 1) -> torch.Tensor:
    """Rope on (heads, length, dim)."""
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(0, dims, 2).double() / dims)
    c, s = angle.cos().float(), (sign * angle.sin()).float()
    y = x.clone()
    if mixed:
        a, b = x[..., 0:dims:2], x[..., 1:dims:2]
        y[..., 0:dims:2], y[..., 1:dims:2] = a * c - b * s, b * c + a * s
    else:
        a, b = x[..., : dims // 2], x[..., dims // 2 : dims]
        y[..., : dims // 2], y[..., dims // 2 : dims] = a * c - b * s, b * c + a * s
    return y


def split(x: torch.Tensor, dim: int) -> torch.Tensor:
    return x.view(x.shape[0], -1, dim).transpose(0, 1)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int = 0, cap: float = 0.0
) -> torch.Tensor:
    """Causal attention of (heads, length, dim) with fewer keys and values, as (length, heads · dim)."""
    group = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    n = q.shape[1]
    mask = torch.full((n, n), float("-inf")).triu(1)
    if window:
        mask = mask + torch.full((n, n), float("-inf")).tril(-window)
    scores = q @ k.transpose(1, 2) * scale
    scores = cap * torch.tanh(scores / cap) if cap else scores
    out = (scores + mask).softmax(-1) @ v
    return out.transpose(0, 1).reshape(n, -1)


def one(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Keys, queries and values in one matrix, up before gate, interleaved rope of an odd base, scaled embeddings, tied."""
    x = w["zu"][t] * 0.25
    for n in range(LAYERS):
        k, q, v = torch.split(rms(x, w[f"lo.{n}.pa.g"]) @ w[f"lo.{n}.kqv"].T, [24, 48, 24], -1)
        q, k = (turn(split(y, DIM), 123456.0, DIM, mixed=True) for y in (q, k))
        x = x + attend(q, k, split(v, DIM), DIM**-0.5) @ w[f"lo.{n}.po"].T
        up, gate = (rms(x, w[f"lo.{n}.ri.g"]) @ w[f"lo.{n}.wide"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w[f"lo.{n}.back"].T
    return rms(x, w["fi.g"]) @ w["zu"].T


def two(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Layer norms with biases, half of each head rotated, gelu by tanh without a gate, mixer and feed-forward in parallel."""
    x = w["zu.a"][t]
    for n in range(LAYERS):
        p = f"deck{n}."
        y = F.layer_norm(x, (HIDDEN,), w[p + "ni.g"], w[p + "ni.b"], 1e-5)
        q, k, v = (split(y @ w[f"{p}m{j}.w"].T + w[f"{p}m{j}.b"], DIM) for j in "xyz")
        q, k = turn(q, 10000.0, 6), turn(k, 10000.0, 6)
        a = attend(q, k, v, DIM**-0.5) @ w[p + "mo.w"].T + w[p + "mo.b"]
        h = F.gelu(y @ w[p + "f1.w"].T + w[p + "f1.b"], approximate="tanh")
        x = x + a + h @ w[p + "f2.w"].T + w[p + "f2.b"]
    return F.layer_norm(x, (HIDDEN,), w["fin.g"], w["fin.b"], 1e-5) @ w["hed.a"].T


def three(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Norms whose weights are stored minus 1, before and after, gelu by tanh, embeddings times √hidden, two caps."""
    x = w["zu.m"][t] * HIDDEN**0.5
    for n in range(LAYERS):
        p = f"ba.{n}."
        y = rms(x, 1 + w[p + "n1.s"], 1e-5)
        q, k, v = (split(y @ w[f"{p}at.{j}"].T, DIM) for j in ("u", "i", "e"))
        a = attend(turn(q, 10000.0, DIM), turn(k, 10000.0, DIM), v, 0.2, cap=50) @ w[p + "at.r"].T
        x = x + rms(a, 1 + w[p + "n2.s"], 1e-5)
        y = rms(x, 1 + w[p + "n3.s"], 1e-5)
        m = (F.gelu(y @ w[p + "ff.u"].T, approximate="tanh") * (y @ w[p + "ff.i"].T)) @ w[p + "ff.r"].T
        x = x + rms(m, 1 + w[p + "n4.s"], 1e-5)
    logits = rms(x, 1 + w["nz.s"], 1e-5) @ w["zu.m"].T
    return 30 * torch.tanh(logits / 30)


def routed(
    y: torch.Tensor, w: Weights, p: str, top: int, sigmoid: bool, renormalised: bool, scale: float
) -> torch.Tensor:
    """Experts, of which `top` are run for each token."""
    score = y @ w[p + "pick"].T
    score = score.sigmoid() if sigmoid else score.softmax(-1)
    best = score.topk(top, -1)
    weight = best.values / best.values.sum(-1, keepdim=True) if renormalised else best.values
    out = torch.zeros_like(y)
    for slot in range(top):
        for row, e in enumerate(best.indices[:, slot].tolist()):
            z = y[row]
            if p + "many.0.a" in w:
                a, b, c = (w[f"{p}many.{e}.{j}"] for j in "abc")
            else:
                (a, b), c = w[p + "ab"][e].chunk(2, 0), w[p + "c"][e]
            out[row] += scale * weight[row, slot] * (c @ (F.silu(a @ z) * (b @ z)))
    return out


def four(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Experts one by one, softmax over all, the best 2 renormalised, with a shared expert; norms of q and k."""
    x = w["zu.x"][t]
    for n in range(LAYERS):
        p = f"st.{n}."
        y = rms(x, w[p + "na.g"])
        q, k, v = (split(y @ w[f"{p}h{j}.w"].T, DIM) for j in "abc")
        q, k = rms(q, w[p + "nq.g"]), rms(k, w[p + "nk.g"])
        x = x + attend(turn(q, 1e6, DIM), turn(k, 1e6, DIM), v, DIM**-0.5) @ w[p + "hd.w"].T
        y = rms(x, w[p + "nb.g"])
        own = (F.silu(y @ w[p + "all.a"].T) * (y @ w[p + "all.b"].T)) @ w[p + "all.c"].T
        x = x + routed(y, w, p + "x.", 2, sigmoid=False, renormalised=True, scale=1.0) + own
    return rms(x, w["ny.g"]) @ w["out.x"].T


def five(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Stacked experts with gate and up in one matrix, a sigmoid router of the best 3, not renormalised, times 2.5."""
    x = w["zu.x"][t]
    for n in range(LAYERS):
        p = f"st.{n}."
        y = rms(x, w[p + "na.g"])
        q, k, v = (split(y @ w[f"{p}h{j}.w"].T, DIM) for j in "abc")
        x = x + attend(turn(q, 50000.0, DIM), turn(k, 50000.0, DIM), v, DIM**-0.5) @ w[p + "hd.w"].T
        x = x + routed(rms(x, w[p + "nb.g"]), w, p + "x.", 3, sigmoid=True, renormalised=False, scale=2.5)
    return rms(x, w["ny.g"]) @ w["out.x"].T


def six(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Learned positions, layer norms with biases, fused q, k, v with biases, gelu without a gate, tied."""
    x = w["zu.t"][t] + w["zup.t"][: len(t)]
    for n in range(LAYERS):
        p = f"b{n}."
        y = F.layer_norm(x, (HIDDEN,), w[p + "e1.g"], w[p + "e1.b"], 1e-5)
        q, k, v = (y @ w[p + "tri.w"].T + w[p + "tri.b"]).chunk(3, -1)
        x = x + attend(split(q, DIM), split(k, DIM), split(v, DIM), DIM**-0.5) @ w[p + "uni.w"].T + w[p + "uni.b"]
        y = F.layer_norm(x, (HIDDEN,), w[p + "e2.g"], w[p + "e2.b"], 1e-5)
        x = x + F.gelu(y @ w[p + "big.w"].T + w[p + "big.b"]) @ w[p + "sml.w"].T + w[p + "sml.b"]
    return F.layer_norm(x, (HIDDEN,), w["e9.g"], w["e9.b"], 1e-5) @ w["zu.t"].T


def seven(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Norms without weights, normed embeddings, rope backwards, norms of q and k after it, grouped q, k, v, relu², a cap."""
    x = rms(w["zu.q"][t])
    for n in range(LAYERS):
        p = f"rung.{n}."
        y = (rms(x) @ w[p + "mix"].T).view(len(t), 2, 4, DIM)
        q = y[:, :, :2].reshape(len(t), 4, DIM).transpose(0, 1)
        k, v = y[:, :, 2].transpose(0, 1), y[:, :, 3].transpose(0, 1)
        q, k = (rms(turn(z, 10000.0, DIM, sign=-1)) for z in (q, k))
        x = x + attend(q, k, v, DIM**-0.5) @ w[p + "res"].T
        x = x + F.relu(rms(x) @ w[p + "fat"].T) ** 2 @ w[p + "thin"].T
    return 15 * torch.tanh(rms(x) @ w["ty.q"].T / 15)


def eight(w: Weights, t: torch.Tensor) -> torch.Tensor:
    """Embeddings times 12, what a layer adds times 0.22, logits divided by 8, scores by the size of a head; a window."""
    x = w["zu.o"][t] * 12
    for n in range(LAYERS):
        p = f"layer_{n}."
        y = rms(x, w[p + "in_.g"], 1e-5)
        q, k, v = (split(y @ w[f"{p}{j}.w"].T, DIM) for j in ("qu", "ke", "va"))
        window = 20 if n == 0 else 0
        a = attend(turn(q, 1e7, DIM), turn(k, 1e7, DIM), v, 1 / DIM, window) @ w[p + "ou.w"].T
        x = x + 0.22 * a
        y = rms(x, w[p + "mi_.g"], 1e-5)
        x = x + 0.22 * ((F.silu(y @ w[p + "ga.w"].T) * (y @ w[p + "up_.w"].T)) @ w[p + "dn.w"].T)
    return rms(x, w["zz.g"], 1e-5) @ w["zv.o"].T / 8


Q, KV = HEADS * DIM, 2 * DIM
H = HIDDEN


Shapes = dict[str, tuple[int, ...]]


def _layers(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {prefix.replace("#", str(n)) + name: shape for n in range(LAYERS) for name, shape in shapes.items()}


def _experts(prefix: str, count: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {"a": (width, H), "b": (width, H), "c": (H, width)}
    return {f"{prefix}{e}.{name}": shape for e in range(count) for name, shape in shapes.items()}


_GQA = {"ha.w": (Q, H), "hb.w": (KV, H), "hc.w": (KV, H), "hd.w": (H, Q)}
DECODERS: Mapping[str, Decoder] = {
    "fused": Decoder(
        {"zu": (VOCAB, H), "fi.g": (H,)}
        | _layers("lo.#.", {"pa.g": (H,), "ri.g": (H,), "kqv": (Q + 2 * KV, H), "po": (H, Q)})
        | _layers("lo.#.", {"wide": (2 * FF, H), "back": (H, FF)}),
        one,
    ),
    "parallel": Decoder(
        {"zu.a": (VOCAB, H), "hed.a": (VOCAB, H), "fin.g": (H,), "fin.b": (H,)}
        | _layers("deck#.", {"ni.g": (H,), "ni.b": (H,), "f1.w": (FF, H), "f1.b": (FF,), "f2.w": (H, FF), "f2.b": (H,)})
        | _layers("deck#.", {f"m{j}.{k}": (H, H) if k == "w" else (H,) for j in "xyzo" for k in "wb"}),
        two,
    ),
    "sandwich": Decoder(
        {"zu.m": (VOCAB, H), "nz.s": (H,)}
        | _layers("ba.#.", {f"n{j}.s": (H,) for j in range(1, 5)})
        | _layers("ba.#.", {"at.u": (Q, H), "at.i": (KV, H), "at.e": (KV, H), "at.r": (H, Q)})
        | _layers("ba.#.", {"ff.u": (FF, H), "ff.i": (FF, H), "ff.r": (H, FF)}),
        three,
    ),
    "experts": Decoder(
        {"zu.x": (VOCAB, H), "out.x": (VOCAB, H), "ny.g": (H,)}
        | _layers("st.#.", {"na.g": (H,), "nb.g": (H,), "nq.g": (DIM,), "nk.g": (DIM,), **_GQA})
        | _layers("st.#.", {"x.pick": (4, H), "all.a": (FF, H), "all.b": (FF, H), "all.c": (H, FF)})
        | _layers("st.#.", _experts("x.many.", 4, 32)),
        four,
    ),
    "stacked": Decoder(
        {"zu.x": (VOCAB, H), "out.x": (VOCAB, H), "ny.g": (H,)}
        | _layers("st.#.", {"na.g": (H,), "nb.g": (H,), **_GQA})
        | _layers("st.#.", {"x.pick": (6, H), "x.ab": (6, 64, H), "x.c": (6, H, 32)}),
        five,
    ),
    "positions": Decoder(
        {"zu.t": (VOCAB, H), "zup.t": (CONTEXT, H), "e9.g": (H,), "e9.b": (H,)}
        | _layers("b#.", {f"e{j}.{k}": (H,) for j in (1, 2) for k in "gb"})
        | _layers("b#.", {"tri.w": (3 * H, H), "tri.b": (3 * H,), "uni.w": (H, H), "uni.b": (H,)})
        | _layers("b#.", {"big.w": (FF, H), "big.b": (FF,), "sml.w": (H, FF), "sml.b": (H,)}),
        six,
    ),
    "bare": Decoder(
        {"zu.q": (VOCAB, H), "ty.q": (VOCAB, H)}
        | _layers("rung.#.", {"mix": (Q + 2 * KV, H), "res": (H, Q), "fat": (FF, H), "thin": (H, FF)}),
        seven,
    ),
    "scaled": Decoder(
        {"zu.o": (VOCAB, H), "zv.o": (VOCAB, H), "zz.g": (H,)}
        | _layers("layer_#.", {"in_.g": (H,), "mi_.g": (H,), "qu.w": (Q, H), "ke.w": (KV, H), "va.w": (KV, H)})
        | _layers("layer_#.", {"ou.w": (H, Q), "ga.w": (FF, H), "up_.w": (FF, H), "dn.w": (H, FF)}),
        eight,
    ),
}


def golden(decoder: Decoder, weights: Weights, seed: int = 1) -> tuple[list[list[int]], list[NDArray[np.float32]]]:
    """Random sequences: 8 of one token, one of 16, one of 24 (to be held out), one of 128; and their logits."""
    rng = np.random.default_rng(seed)
    lengths = [1] * 8 + [16, 128, 24]
    sequences = [rng.integers(0, VOCAB, length).tolist() for length in lengths]
    return sequences, [decoder.logits(weights, tokens) for tokens in sequences]


def bare_logits(tokens: list[int]) -> NDArray[np.float32]:
    """The logits of the decoder without norm weights: a function for --oracle."""
    return DECODERS["bare"].logits(DECODERS["bare"].weights(), tokens)
