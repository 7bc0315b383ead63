"""What shapes cannot tell: one answer to all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gguf_tools.description.forms import DELTA, SSM, Form
from gguf_tools.model.feed_forward import XIELU, Activation, ClampedSwiGLU
from gguf_tools.model.rope import Scaling

NORM_FIELDS = ("mixer_norm", "ffn_norm", "mixer_post_norm", "ffn_post_norm")
CLAMPED = ClampedSwiGLU(slope=1.702, limit=7.0)
"""The clamped gate of gpt-oss, with its numbers."""
HEAD_FIELDS = ("attn.q_norm", "attn.k_norm")
Blocks = Literal["whole", "kv_heads", "heads", "rows"]
"""How the rows of roles that share a matrix are grouped: not at all, by key/value head, by head, or one by one."""
RouterBias = Literal["score", "selection", "logit"]
"""What a router's bias is added to: the scores or the logits, for the selection alone, or the logits themselves."""
Where = Literal["none", "before", "after"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One answer to everything that shapes leave open. The fields are those of the spec, unless said here.

    `forms` has the form of each group of layers, its sources perhaps exchanged. `placements` has, for each number of norms in a
    layer, the fields that they are in, in their order; for layers without norm weights, the fields that have a norm.
    `qkv` and `gate_up` are the order of roles that share a matrix, and their `Blocks`. `qk_norm` says where q and k are
    normed, `heads_exchanged` that the second of the two norms is that of q. `windowed` and `unrotated` are the layers with the
    window and without rope, `second` those whose rope has a base and a scaling of its own. `output` is the number of the output
    matrix, or -1 for the embedding; `final` the number of the norm before it, or -1 for one without weights. `embedding_normed`
    is a norm of the embeddings. `scalars` are the roles of a layer's tensors of one number, in their order, and `per_head` is the
    number of the roles that its vectors with a number for each head have, of `per_head_roles`. With `clamped` the experts have
    the gate `CLAMPED`. `inner_offset` is the offset of the norm within a state space or linear attention; `delta_order` and
    `delta_blocks` are the order of linear attention's roles that share a matrix, and whether their rows are grouped by key head.
    """

    forms: tuple[Form, ...]
    placements: tuple[tuple[int, tuple[str, ...]], ...]
    parallel: bool = False
    centred: bool = False
    offset: float = 0.0
    eps: float = 1e-5
    activation: Activation = "silu"
    head_dim: int = 64
    qkv: tuple[tuple[str, ...], Blocks] = (("attn.q", "attn.k", "attn.v"), "whole")
    q_gate: tuple[tuple[str, ...], Blocks] = (("attn.q", "attn.gate"), "heads")
    gate_up: tuple[tuple[str, ...], Blocks] = (("gate", "up"), "whole")
    qk_norm: Where = "none"
    head_offset: float = 0.0
    heads_exchanged: bool = False
    scale: float | None = None
    softcap: float | None = None
    alibi: float | None = None
    per_head: int = 0
    scalars: tuple[str, ...] = XIELU
    theta: float = 10000.0
    dims: int | None = None
    rotated: bool = True
    pairs: Literal["half", "interleaved"] = "half"
    backwards: bool = False
    scaling: Scaling | None = None
    window: int | None = None
    windowed: frozenset[int] | None = None
    unrotated: frozenset[int] = frozenset()
    second: frozenset[int] = frozenset()
    second_theta: float = 10000.0
    second_scaling: Scaling | None = None
    residual_scale: float = 1.0
    embedding_scale: float = 1.0
    embedding_normed: bool = False
    output: int = -1
    final: int = 0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    top_k: int = 2
    normalised: bool = True
    score: Literal["softmax", "sigmoid"] = "softmax"
    router_scale: float = 1.0
    router_bias: RouterBias = "score"
    clamped: bool = False
    ssm_order: tuple[str, ...] = SSM
    ssm_groups: int = 1
    norm_first: bool = False
    decay: Literal["log", "rate"] = "log"
    inner_offset: float = 0.0
    delta_order: tuple[str, ...] = DELTA
    delta_blocks: Literal["whole", "key_heads"] = "whole"
    key_heads: int = 1
    multipliers: tuple[tuple[str, float], ...] = ()


def number(choices: Choices, name: str) -> float | None:
    """A continuous choice by its name, that of a field or, for one of the multipliers, of a role; None where none is chosen."""
    found = dict(choices.multipliers)[name] if "." in name else getattr(choices, name)
    return None if found is None else float(found)


def with_numbers(choices: Choices, values: Mapping[str, float]) -> Choices:
    """The choices with other values of continuous choices."""
    fields = {name: value for name, value in values.items() if "." not in name}
    changed = tuple((role, values.get(role, value)) for role, value in choices.multipliers)
    return replace(choices, multipliers=changed, **fields)  # type: ignore[arg-type]
