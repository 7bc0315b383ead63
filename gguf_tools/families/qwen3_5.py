"""The text model of Qwen3.5, dense or MoE (transformers: Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM).

Like Qwen3-Next, but the DeltaNet's projections are separate. Its rope (mrope) has three position axes, which are equal for
text, so it is plain rope on the first quarter of each head.
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hybrid import build_hybrid
from gguf_tools.families.tiny.hybrid import QWEN35_VARIANTS, write_qwen35
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

NAME = "qwen3.5"


def matches(checkpoint: Checkpoint) -> bool:
    """Linear attention with separate projections."""
    return signature(checkpoint).separate


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    return build_hybrid(checkpoint, NAME, FAMILY.model_types)


_DENSE, _MOE = Expected(target="qwen35"), Expected(target="qwen35moe")
_MTP = "multi-token prediction block (mtp.*) is left out"
# No oracle: the transformers class always has an attention gate, and it does not read MLX's tensor names.
VARIANTS = {
    **dict.fromkeys(QWEN35_VARIANTS, _DENSE),
    "moe": _MOE,
    "moe-separate-experts": _MOE,
    "ungated": replace(_DENSE, rewrites=("zero attention gate",), oracle=False),
    "output-bias": replace(_DENSE, rewrites=("bias on the attention output",)),
    "vision": replace(_DENSE, notes=("the vision tower", _MTP), text_only=True),
    "mlx": replace(_DENSE, notes=("saved by MLX",), oracle=False),
    "moe-mlx": replace(_MOE, notes=("saved by MLX",), oracle=False),
}


FAMILY = Family(
    name=NAME,
    title="Qwen3.5, hybrid, dense or MoE",
    model_types=("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    matches=matches,
    build=build,
    preferred_targets=("qwen35", "qwen35moe"),
    variants=VARIANTS,
    tiny=write_qwen35,
)
