"""llama.cpp's `qwen2`: dense, biases on queries, keys and values where the file has them (`src/models/qwen2.cpp`)."""

from __future__ import annotations

from gguf_tools.model.spec import ModelSpec
from gguf_tools.targets.base import Target
from gguf_tools.targets.lacks import attention_lacks, attentions, linear_lacks, mlp_lacks, moes, norm_lacks, scale_lacks
from gguf_tools.targets.lifting import lift_dense
from gguf_tools.targets.lowering import lower_dense

NAME = "qwen2"


def lacks(spec: ModelSpec) -> list[str]:
    """What the architecture cannot express of this spec."""
    found = linear_lacks(spec)
    if moes(spec):
        found.append("experts")
    found += qwen2_attention_lacks(spec) + mlp_lacks(spec)
    return found + norm_lacks(spec) + scale_lacks(spec)


def qwen2_attention_lacks(spec: ModelSpec) -> list[str]:
    """Qwen2's attention, dense or with experts: no q/k norm, and heads that together are as wide as the model."""
    found = attention_lacks(spec, gated=False, full_rope=True, qk_norm=False)
    for mixer in dict.fromkeys(attentions(spec)):
        if mixer.heads * mixer.head_dim != spec.hidden:
            found.append(f"{mixer.heads} heads of {mixer.head_dim} in a model {spec.hidden} wide")
    return found


TARGET = Target(
    name=NAME, rewrites=(), lacks=lacks, lower=lower_dense(NAME), lift=lift_dense, native=frozenset({"qwen2"})
)
