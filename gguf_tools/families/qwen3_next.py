"""Qwen3-Next in Hugging Face layout (transformers: Qwen3NextForCausalLM): Gated DeltaNet and gated attention, MoE.

Taken with or without the gates, the shared expert, a bias on the attention output, and in any order of layers.
"""

from __future__ import annotations

from gguf_tools.checkpoint import Checkpoint
from gguf_tools.families.base import Family
from gguf_tools.families.hybrid import build_hybrid
from gguf_tools.families.hybrid_tiny import NEXT_VARIANTS, write_next
from gguf_tools.families.signature import signature
from gguf_tools.spec import Model

NAME = "qwen3-next"


def matches(checkpoint: Checkpoint) -> bool:
    """Fused linear attention, a gated query projection, or experts with a shared one, beside q_norm and k_norm."""
    seen = signature(checkpoint)
    return seen.hybrid and not seen.separate


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    return build_hybrid(checkpoint, NAME)


FAMILY = Family(NAME, "Qwen3-Next, hybrid MoE", matches, build, tuple(NEXT_VARIANTS), write_next)
