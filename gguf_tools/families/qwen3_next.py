"""Qwen3-Next in Hugging Face layout (transformers: Qwen3NextForCausalLM): Gated DeltaNet and gated attention, MoE.

Taken with or without the gates, the shared expert, a bias on the attention output, and in any order of layers.
"""

from __future__ import annotations

from gguf_tools.families.base import Family
from gguf_tools.families.hybrid import build_hybrid
from gguf_tools.families.tiny.hybrid import NEXT_VARIANTS, write_next
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

NAME = "qwen3-next"


def matches(checkpoint: Checkpoint) -> bool:
    """Fused linear attention, a gated query projection, or experts with a shared one, beside q_norm and k_norm."""
    seen = signature(checkpoint)
    return seen.hybrid and not seen.separate


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    return build_hybrid(checkpoint, NAME)


FAMILY = Family(
    name=NAME,
    title="Qwen3-Next, hybrid MoE",
    matches=matches,
    build=build,
    variants=tuple(NEXT_VARIANTS),
    tiny=write_next,
)
