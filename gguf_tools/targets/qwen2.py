"""llama.cpp's `qwen2`: dense, with optional biases on queries, keys and values (`src/models/qwen2.cpp`)."""

from __future__ import annotations

from gguf_tools.model.spec import ModelSpec
from gguf_tools.targets.base import Target
from gguf_tools.targets.lifting import lift_dense
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_HALF,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    norm_limits,
    square_limits,
)
from gguf_tools.targets.lowering import lower_dense

NAME = "qwen2"


EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | DENSE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return heads_limits(spec) + mlp_limits(spec) + norm_limits(spec)


def heads_limits(spec: ModelSpec) -> list[str]:
    """Limits of Qwen2's attention, dense or MoE: heads · head_dim must equal the model's hidden size."""
    return attention_limits(spec) + square_limits(spec)


TARGET = Target(
    name=NAME,
    rewrites=(),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower_dense(NAME),
    lift=lift_dense,
)
