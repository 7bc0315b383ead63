"""Token mixers: softmax attention and the gated delta rule, on activations of shape (batch, length, hidden)."""

from __future__ import annotations

import torch
from torch.nn import functional

from gguf_tools.model.rope import Rope, frequencies
from gguf_tools.model.spec import Attention, DeltaNet
from gguf_tools.reference.norm import normed
from gguf_tools.reference.observe import Observe, unobserved
from gguf_tools.reference.past import Past
from gguf_tools.reference.state_space import causal_conv, softplus
from gguf_tools.reference.weights import Weights

_SCORE_BYTES = 64 << 20
"""Most bytes of attention scores at a time."""


def rotate(x: torch.Tensor, rope: Rope, start: int = 0, total: int | None = None) -> torch.Tensor:
    """Rotary embedding of x, shape (batch, heads, length, head_dim), at positions start … start + length - 1.

    `total` is the length of the whole sequence, on which LongRoPE's frequencies depend; without it, it ends with x. Angles are
    computed in float64, since in float32 their error grows with the position.
    """
    end = start + x.shape[2]
    inv, magnitude = frequencies(rope, end if total is None else total)
    angles = torch.arange(start, end, dtype=torch.float64)[:, None] * torch.from_numpy(inv)
    cos, sin = (angles.cos() * magnitude).to(x.dtype), (angles.sin() * magnitude).to(x.dtype)
    sin = -sin if rope.backwards else sin
    turned, rest = x[..., : rope.dims], x[..., rope.dims :]
    if rope.pairs == "half":
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def attention(
    spec: Attention, weights: Weights, x: torch.Tensor, observe: Observe = unobserved, past: Past | None = None
) -> torch.Tensor:
    """Causal softmax attention with grouped queries (Ainslie et al. 2023), optionally gated or with a sliding window.

    x and the result have shape (batch, length, hidden); with `past` they are the block of a sequence that follows what it holds.
    """
    batch, length, _ = x.shape

    def heads(name: str, count: int) -> torch.Tensor:
        projected = functional.linear(x, weights[f"attn.{name}"])
        observe(f"attn.{name}_product", projected)
        if f"attn.{name}_bias" in weights:
            projected = projected + weights[f"attn.{name}_bias"]
        observe(f"attn.{name}", projected)
        return projected.view(batch, length, count, -1)

    q, k, v = heads("q", spec.heads), heads("k", spec.kv_heads), heads("v", spec.kv_heads)
    if spec.clip:
        q, k, v = (t.clamp(-spec.clip, spec.clip) for t in (q, k, v))
    if not spec.norm_after_rope:
        q, k = normed_heads(spec, weights, "q", q), normed_heads(spec, weights, "k", k)
    if spec.value_scale:
        v = v * weights["attn.v_scale"][:, None]
    if spec.qk_norm and not spec.norm_after_rope:
        observe("attn.q_normed", q)
        observe("attn.k_normed", k)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if spec.rope:
        place = (past.start, past.total) if past else ()
        q, k = rotate(q, spec.rope, *place), rotate(k, spec.rope, *place)
        observe("attn.q_rope", q.transpose(1, 2))
        observe("attn.k_rope", k.transpose(1, 2))
    if spec.norm_after_rope:
        q, k = (normed_heads(spec, weights, name, t.transpose(1, 2)) for name, t in (("q", q), ("k", k)))
        observe("attn.q_normed", q)
        observe("attn.k_normed", k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    if past:
        k, v = past.extended("attn.k", k), past.extended("attn.v", v)
    out = _attended(spec, weights, (q, k, v), observe).transpose(1, 2).reshape(batch, length, -1)
    observe("attn.heads", out)
    if spec.gated:
        gate = functional.linear(x, weights["attn.gate"], weights.get("attn.gate_bias"))
        observe("attn.gate", gate)
        out = out * gate.sigmoid()
        observe("attn.gated", out)
    return functional.linear(out, weights["attn.o"], weights.get("attn.o_bias"))


def normed_heads(spec: Attention, weights: Weights, name: str, heads: torch.Tensor) -> torch.Tensor:
    """The heads of queries or keys (`name` is q or k), (batch, length, heads, head_dim), after their norm and gain."""
    whole = heads.flatten(2) if spec.norm_whole else heads
    out = normed(whole, spec.qk_norm, weights, f"attn.{name}_norm").view_as(heads)
    return out * weights[f"attn.{name}_gain"][:, None] if spec.norm_gain else out


def _attended(
    spec: Attention, weights: Weights, qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor], observe: Observe
) -> torch.Tensor:
    """The values that the last positions attend to, (batch, heads, length, value_dim).

    Queries are (batch, heads, length, head_dim), keys and values those of all positions up to the last query's, (batch,
    kv_heads, positions, …). As many queries at a time are computed as fit into `_SCORE_BYTES`, all of them if observed.
    """
    q, k, v = qkv
    length, positions = q.shape[2], k.shape[2]
    rows = max(1, _SCORE_BYTES // (q.shape[0] * spec.heads * positions * q.element_size()))
    rows = length if observe is not unobserved else min(rows, length)
    found = []
    for start in range(0, length, rows):
        part = q[:, :, start : start + rows]
        end = positions - length + start + part.shape[2]
        shares = _shares(spec, weights, part, k[:, :, :end])
        observe("attn.shares", shares.transpose(1, 2))
        grouped = shares.reshape(shares.shape[0], spec.kv_heads, -1, end)
        found.append((grouped @ v[:, :, :end]).reshape(*part.shape[:3], -1))
    return torch.cat(found, dim=2)


def _shares(spec: Attention, weights: Weights, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The attention weights (batch, heads, length, positions) of queries at the last positions."""
    batch, _, length, _ = q.shape
    positions = k.shape[2]
    grouped = q.reshape(batch, spec.kv_heads, -1, q.shape[3])  # the queries of a group read the same keys
    scores = (grouped @ k.transpose(-1, -2)).view(batch, spec.heads, length, positions) * spec.score_scale
    if spec.softcap:
        scores = spec.softcap * (scores / spec.softcap).tanh()
    distance = torch.arange(positions - length, positions)[:, None] - torch.arange(positions)
    if spec.alibi:
        slopes = torch.tensor(spec.slopes, dtype=q.dtype)[:, None, None]
        scores = scores - slopes * distance.to(q.dtype)
    hidden = distance < 0
    if spec.window:
        hidden |= distance >= spec.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if not spec.sinks:
        return scores.softmax(-1)
    sinks = weights["attn.sinks"][:, None, None].expand(batch, -1, length, 1)
    return torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]


def delta_net(
    spec: DeltaNet, weights: Weights, x: torch.Tensor, observe: Observe = unobserved, past: Past | None = None
) -> torch.Tensor:
    """Gated delta rule (Yang et al. 2024) by the recurrence over tokens, not in the chunked form.

    x and the result have shape (batch, length, hidden); with `past` they are the block of a sequence that follows what it holds.
    """
    batch, length, _ = x.shape
    mixed = torch.cat([functional.linear(x, weights[f"delta.{name}"]) for name in "qkv"], dim=-1)
    observe("delta.qkv", mixed)
    conv = causal_conv(mixed, weights["delta.conv"], past=past)
    observe("delta.conv", conv)
    observe("delta.conv_act", functional.silu(conv))
    key_width = spec.key_heads * spec.key_dim
    widths = [key_width, key_width, spec.value_heads * spec.value_dim]
    q, k, v = torch.split(functional.silu(conv), widths, dim=-1)
    groups = spec.value_heads // spec.key_heads
    q, k = (
        _unit(t.reshape(batch, length, spec.key_heads, spec.key_dim), spec.l2_eps).repeat_interleave(groups, dim=2)
        for t in (q, k)
    )
    v = v.reshape(batch, length, spec.value_heads, spec.value_dim)
    observe("delta.q_unit", q)
    observe("delta.k_unit", k)
    logit = functional.linear(x, weights["delta.beta"])
    observe("delta.beta", logit)
    beta = logit.sigmoid()
    rate = weights["delta.decay"] if spec.decay == "rate" else -weights["delta.decay"].exp()
    alpha = functional.linear(x, weights["delta.alpha"])
    observe("delta.alpha", alpha)
    step = softplus(alpha + weights["delta.dt_bias"])
    observe("delta.step", step)
    observe("delta.log_decay", rate * step)
    state = past.kept("delta.state") if past else None
    out, state = _recurrence(q / spec.key_dim**0.5, k, v, beta, (rate * step).exp(), state)
    if past:
        past.keep("delta.state", state)
    observe("delta.out", out)
    observe("delta.state", state[:, None])
    z = functional.linear(x, weights["delta.z"]).view_as(out)
    observe("delta.z", z)
    gated = normed(out, spec.norm, weights, "delta.norm") * functional.silu(z)
    observe("delta.gated", gated)
    return functional.linear(gated.flatten(2), weights["delta.o"])


def _recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    decay: torch.Tensor,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S ← decay·S + k ⊗ beta·(v - kᵀ(decay·S)) for each token, with output qᵀS; S is (batch, heads, key_dim, value_dim).

    The outputs, (batch, length, heads, value_dim), and the last S; `state` is the first, 0 if None.
    """
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if state is None else state
    out = []
    for t in range(q.shape[1]):
        state = state * decay[:, t, :, None, None]
        known = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        delta = (v[:, t] - known) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * delta[:, :, None, :]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(out, dim=1), state


def _unit(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
