"""llama.cpp's `qwen3`: dense, q/k norm per head, rope on the whole head (`src/models/qwen3.cpp`)."""

from __future__ import annotations

from gguf_tools.model.spec import ModelSpec
from gguf_tools.rewrites.output_bias import OUTPUT_BIAS_BY_HEADS
from gguf_tools.targets.base import Target
from gguf_tools.targets.lacks import attention_lacks, linear_lacks, mlp_lacks, moes, norm_lacks, scale_lacks
from gguf_tools.targets.lifting import lift_dense
from gguf_tools.targets.lowering import lower_dense

NAME = "qwen3"


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = linear_lacks(spec)
    if moes(spec):
        found.append("experts")
    return (
        found
        + mlp_lacks(spec)
        + attention_lacks(spec, gated=False, full_rope=True)
        + norm_lacks(spec)
        + scale_lacks(spec)
    )


TARGET = Target(
    name=NAME,
    rewrites=(OUTPUT_BIAS_BY_HEADS,),
    lacks=lacks,
    lower=lower_dense(NAME),
    lift=lift_dense,
    native=frozenset({"qwen3"}),
)
