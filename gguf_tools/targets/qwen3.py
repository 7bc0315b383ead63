"""llama.cpp's `qwen3`: dense, q/k norm on each head, RoPE on the whole head (`src/models/qwen3.cpp`)."""

from __future__ import annotations

from gguf_tools.model.spec import ModelSpec
from gguf_tools.rewrites.activations import ACTIVATION_REWRITES
from gguf_tools.rewrites.approximations import UNCAPPED
from gguf_tools.rewrites.norms import CENTRED_STREAM
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.rewrites.rope_pairs import HALF_PAIRS
from gguf_tools.targets.base import Target
from gguf_tools.targets.lifting import lift_dense
from gguf_tools.targets.limits import (
    ATTENTION,
    DECODER,
    DENSE,
    PAIRS_HALF,
    QK_NORM,
    ROPE_SCALING,
    attention_limits,
    mlp_limits,
    norm_limits,
)
from gguf_tools.targets.lowering import lower_dense

NAME = "qwen3"


EXPRESSES = DECODER | ATTENTION | PAIRS_HALF | ROPE_SCALING | QK_NORM | DENSE


def limits(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of the values of its features."""
    return mlp_limits(spec) + attention_limits(spec, qk_norm=True) + norm_limits(spec)


TARGET = Target(
    name=NAME,
    rewrites=(CENTRED_STREAM, *ACTIVATION_REWRITES, OUTPUT_BIAS_BY_HEADS, HALF_PAIRS),
    expresses=EXPRESSES,
    limits=limits,
    lower=lower_dense(NAME),
    lift=lift_dense,
    approximations=(UNCAPPED,),
)
