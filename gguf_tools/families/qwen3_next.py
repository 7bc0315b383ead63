"""Qwen3-Next in Hugging Face layout (transformers: Qwen3NextForCausalLM): Gated DeltaNet and gated attention, MoE.

The gates, the shared expert and a bias on the attention output are optional; layers may come in any order.
"""

from __future__ import annotations

from gguf_tools.families.base import Expected, Family
from gguf_tools.families.hybrid import build_hybrid
from gguf_tools.families.tiny.hybrid import NEXT_VARIANTS, write_next
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.signature import signature

NAME = "qwen3-next"


def matches(checkpoint: Checkpoint) -> bool:
    """q_norm and k_norm, with fused linear attention, a gated query projection, or experts and a shared expert."""
    seen = signature(checkpoint)
    return seen.hybrid and not seen.separate


def build(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model."""
    return build_hybrid(checkpoint, NAME, FAMILY.model_types)


GATE, SHARED_GATE, BIAS = "zero attention gate", "zero shared-expert gate", "bias on the attention output"


def _next(*rewrites: str, note: str = "", oracle: bool = True) -> Expected:
    return Expected(target="qwen3next", rewrites=rewrites, notes=(note,) if note else (), oracle=oracle)


# No oracle: the transformers class always has both gates and the shared expert, and it does not read MLX's tensor names.
VARIANTS = {
    **dict.fromkeys(NEXT_VARIANTS, _next()),
    "ungated": _next(GATE, SHARED_GATE, oracle=False),
    "ungated-attention": _next(GATE, oracle=False),
    "ungated-shared": _next(SHARED_GATE, oracle=False),
    "no-shared": _next("empty shared expert", note="states a shared expert, but the tensors have none", oracle=False),
    "output-bias": _next(BIAS),
    "ungated-output-bias": _next(BIAS, GATE, SHARED_GATE, oracle=False),
    "wide-heads-output-bias": _next(BIAS),
    "fused": _next(note="multi-token prediction block (mtp.*) is left out"),
    "linear-only": _next("idle last layer", GATE),
    "full-only": _next("idle last layer"),
    "dense-layers": _next("dense layers as shared experts"),
    "wide-keys": _next("repeated values"),
    "mlx": _next(note="saved by MLX", oracle=False),
}


FAMILY = Family(
    name=NAME,
    title="Qwen3-Next, hybrid MoE",
    model_types=("qwen3_next",),
    matches=matches,
    build=build,
    preferred_targets=("qwen3next",),
    variants=VARIANTS,
    tiny=write_next,
)
