"""llama.cpp's `qwen3`: dense, q/k norm per head, rope on the whole head (`src/models/qwen3.cpp`)."""

from __future__ import annotations

from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.spec import ModelSpec
from gguf_tools.targets import common
from gguf_tools.targets.base import Target
from gguf_tools.targets.dense import lift_dense, lower_dense

NAME = "qwen3"


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = common.linear_lacks(spec)
    if common.moes(spec):
        found.append("experts")
    return (
        found
        + common.mlp_lacks(spec)
        + common.attention_lacks(spec, gated=False, full_rope=True)
        + common.norm_lacks(spec)
        + common.scale_lacks(spec)
    )


TARGET = Target(NAME, (OUTPUT_BIAS_BY_HEADS,), lacks, lower_dense(NAME), lift_dense, frozenset({"qwen3"}))
