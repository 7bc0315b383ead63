"""Token mixers with a short memory, on activations of shape (batch, length, hidden)."""

from __future__ import annotations

import torch
from torch.nn import functional

from gguf_tools.model.spec import Mamba2, ShortConv
from gguf_tools.reference.observe import Observe, unobserved
from gguf_tools.reference.past import Past
from gguf_tools.reference.weights import Weights


def short_conv(
    spec: ShortConv, weights: Weights, x: torch.Tensor, observe: Observe = unobserved, past: Past | None = None
) -> torch.Tensor:
    """Gated short convolution of LFM2; x and the result have shape (batch, length, hidden), after what `past` holds."""
    projected = functional.linear(x, weights["conv.in"], weights.get("conv.in_bias"))
    observe("conv.in", projected)
    gate, after, values = projected.chunk(3, dim=-1)
    observe("conv.gated", gate * values)
    conv = causal_conv(gate * values, weights["conv.kernel"], weights.get("conv.kernel_bias"), past)
    observe("conv.conv", conv)
    observe("conv.after", after * conv)
    return functional.linear(after * conv, weights["conv.o"], weights.get("conv.o_bias"))


def causal_conv(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None, past: Past | None = None
) -> torch.Tensor:
    """Each channel of x, shape (batch, length, channels), convolved with its row of `kernel` (channels, tokens).

    The last weight of a row belongs to the token itself; before the first token the input is 0, before x what `past` keeps.
    """
    before = past.kept("conv") if past else None
    if before is None:
        before = x.new_zeros(x.shape[0], kernel.shape[1] - 1, x.shape[2])
    padded = torch.cat([before, x], dim=1)
    if past:
        past.keep("conv", padded[:, x.shape[1] :])
    padded = padded.transpose(1, 2)
    return functional.conv1d(padded, kernel[:, None, :], bias, groups=kernel.shape[0]).transpose(1, 2)


def mamba2(
    spec: Mamba2, weights: Weights, x: torch.Tensor, observe: Observe = unobserved, past: Past | None = None
) -> torch.Tensor:
    """Mamba-2 by its recurrence over tokens; x and the result have shape (batch, length, hidden), after what `past` holds."""
    batch, length, _ = x.shape
    parts = [functional.linear(x, weights[f"ssm.{name}"], weights.get(f"ssm.{name}_bias")) for name in spec.widths]
    observe("ssm.in", torch.cat(parts, dim=-1))
    z, values, b, c, step = parts
    mixed = causal_conv(torch.cat([values, b, c], dim=-1), weights["ssm.conv"], weights.get("ssm.conv_bias"), past)
    values, b, c = torch.split(functional.silu(mixed), [spec.widths[name] for name in "xbc"], dim=-1)
    values = values.reshape(batch, length, spec.heads, spec.head_dim)
    b, c = (
        t.reshape(batch, length, spec.groups, -1).repeat_interleave(spec.heads // spec.groups, dim=2) for t in (b, c)
    )
    observe("ssm.z", z)
    observe("ssm.conv", mixed)
    step = step + weights["ssm.dt_bias"]
    observe("ssm.dt", step)
    step = softplus(step)
    if spec.step_limit:
        step = step.clamp(*spec.step_limit)
    rate = weights["ssm.decay"] if spec.decay == "rate" else -weights["ssm.decay"].exp()
    observe("ssm.step", step)
    decay, out = (rate * step).exp(), []
    kept = past.kept("ssm.state") if past else None
    state = x.new_zeros(batch, spec.heads, spec.head_dim, spec.state) if kept is None else kept
    for t in range(length):
        added = (step[:, t, :, None] * values[:, t])[..., None] * b[:, t, :, None]
        state = decay[:, t, :, None, None] * state + added
        out.append(torch.einsum("bhps,bhs->bhp", state, c[:, t]))
    if past:
        past.keep("ssm.state", state)
    y = torch.stack(out, dim=1)
    observe("ssm.scan", y)
    observe("ssm.state", state[:, None])
    y = (y + weights["ssm.skip"][:, None] * values).flatten(2)
    observe("ssm.out", y)
    y = _gated(spec, weights, y, functional.silu(z))
    observe("ssm.gated", y)
    return functional.linear(y, weights["ssm.o"], weights.get("ssm.o_bias"))


def _gated(spec: Mamba2, weights: Weights, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """y ⊙ gate, normed after or before it; the norm's mean is over a group, its weights are over all channels."""
    if spec.norm is None:
        return y * gate
    y = (y if spec.norm_first else y * gate).reshape(*y.shape[:2], spec.groups, -1)
    y = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + spec.norm.eps)).flatten(2)
    y = y * (weights["ssm.norm"] + spec.norm.offset)
    return y * gate if spec.norm_first else y


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)) at any x: torch's own function is the identity above 20, which differs from the definition."""
    return torch.logaddexp(x, torch.zeros_like(x))
