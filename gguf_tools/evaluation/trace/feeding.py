"""The weights that feed each point directly."""

from __future__ import annotations

from collections.abc import Mapping

ROPE_TENSORS = ("rope_freqs.", "rope_factors_")
"""How the names of tensors with factors of RoPE's frequencies begin."""

FEEDS: Mapping[str, tuple[str, ...]] = {
    "attn.heads": ("attn.v",),
    "attn.shares": ("attn.q", "attn.k", "attn.sinks"),
    "attn.gated": ("attn.gate",),
    "attn.q_normed": ("attn.q_norm",),
    "attn.k_normed": ("attn.k_norm",),
    "attn.q_rope": (),
    "attn.k_rope": (),
    "mixer_out": ("attn.o", "delta.o", "conv.o", "ssm.o"),
    "mixer_residual": ("attn.o", "delta.o", "conv.o", "ssm.o"),
    "delta.qkv": ("delta.q", "delta.k", "delta.v"),
    "delta.conv_act": ("delta.conv",),
    "delta.step": ("delta.dt_bias",),
    "delta.log_decay": ("delta.decay",),
    "delta.gated": ("delta.norm",),
    "ssm.in": ("ssm.z", "ssm.x", "ssm.b", "ssm.c", "ssm.step"),
    "ssm.dt": ("ssm.dt_bias",),
    "ssm.scan": ("ssm.decay",),
    "ssm.state": ("ssm.decay",),
    "ssm.out": ("ssm.skip",),
    "ssm.gated": ("ssm.norm",),
    "conv.conv": ("conv.kernel",),
    "ffn_out": ("ffn.down", "moe.down", "shared.down"),
    "ffn.act": ("ffn.gate", "ffn.up"),
    "moe.logits": ("moe.router",),
    "moe.chosen": ("moe.router_bias",),
    "moe.weights": (),
    "moe.out": ("moe.down",),
    "shared.act": (),
}
"""The weights that feed a point, where they are not those of its own name."""


def feeding(point: str, tensors: Mapping[str, object]) -> tuple[str, ...]:
    """The roles of a layer that feed a point directly."""
    name = point.removesuffix("_product").replace("expert.", "moe.")
    roles = FEEDS.get(name, (name, f"{name}_bias"))
    return tuple(role for role in roles if role in tensors)
