"""The fields of a spec that the tensors show: sizes, and whether a bias, a gate or a norm is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from gguf_tools.description.schema import KeyPath
from gguf_tools.model.norms import Shape

NORM_ROLES = {"qk_norm": ("attn.q_norm",), "norm": ("delta.norm", "ssm.norm")}
"""Field of a norm → the roles that its weights may have, where they do not have the same name."""
NORM_FIELDS = (
    "mixer_norm",
    "ffn_norm",
    "mixer_post_norm",
    "ffn_post_norm",
    "output_norm",
    "embedding_norm",
    *NORM_ROLES,
)
BIASED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Attention": ("attn", ("q", "k", "v", "o")),
    "GatedMLP": ("ffn", ("gate", "up", "down")),
    "MLP": ("ffn", ("up", "down")),
    "MoE": ("moe", ("gate", "up", "down")),
}
"""Class with a set of biases → how the names of its roles begin, and the projections that may have one."""
PRESENT = {
    ("Attention", "gated"): "attn.gate",
    ("Attention", "norm_gain"): "attn.q_gain",
    ("Attention", "value_scale"): "attn.v_scale",
    ("Attention", "sinks"): "attn.sinks",
    ("Router", "logit_bias"): "moe.logit_bias",
    ("SharedExpert", "gated"): "shared.sigmoid",
    ("Mamba2", "conv_bias"): "ssm.conv_bias",
    ("ShortConv", "bias"): "conv.in_bias",
    ("ModelSpec", "output_bias"): "output_bias",
}
"""Field that is true if there is a tensor of a role."""
AXES = {
    ("GatedMLP", "width"): ("ffn.down", -1),
    ("MLP", "width"): ("ffn.down", -1),
    ("MoE", "experts"): ("moe.router", 0),
    ("MoE", "width"): ("moe.down", -1),
    ("SharedExpert", "width"): ("shared.down", -1),
    ("ShortConv", "kernel"): ("conv.kernel", -1),
    ("DeltaNet", "kernel"): ("delta.conv", -1),
    ("Mamba2", "kernel"): ("ssm.conv", -1),
    ("ModelSpec", "positions"): ("positions", 0),
}
"""Size → role and axis that it is read from."""


def derived_field(kind: type, name: str, place: KeyPath, shapes: Mapping[str, Shape | None]) -> Any:
    """The value of a field that no table states, or MISSING.

    `shapes` has every role that a tensor is given for, with its shape where the tensor holds nothing else.
    """
    key = (kind.__name__, name)
    if key in PRESENT:
        return PRESENT[key] in shapes
    if key in AXES:
        role, axis = AXES[key]
        shape = shapes.get(role)
        return shape[axis] if shape else MISSING
    if key == ("ModelSpec", "tied"):
        return "output" not in shapes
    if key == ("MoE", "router"):
        return {}
    if key == ("MoE", "shared"):
        return {} if "shared.down" in shapes else None
    if name == "bias" and kind.__name__ in BIASED:
        prefix, names = BIASED[kind.__name__]
        return frozenset(name for name in names if f"{prefix}.{name}_bias" in shapes)
    if key == ("Mamba2", "bias"):
        return frozenset(name for name, role in (("in", "ssm.z_bias"), ("o", "ssm.o_bias")) if role in shapes)
    if kind.__name__ == "Norm" and name in ("weighted", "bias"):
        role = _norm_role(place[-2], shapes)
        return (role if name == "weighted" else f"{role}_bias") in shapes
    if name in NORM_FIELDS:
        role = _norm_role(name, shapes)
        required = name == "output_norm" or key == ("DeltaNet", "norm")
        return {} if role in shapes or f"{role}_bias" in shapes or required else None
    return MISSING


def _norm_role(field: str, shapes: Mapping[str, Shape | None]) -> str:
    """The role of the weights of the norm in a field, of those that it may have the one that a tensor is given for."""
    roles = NORM_ROLES.get(field, (field,))
    return next((role for role in roles if role in shapes or f"{role}_bias" in shapes), roles[0])
