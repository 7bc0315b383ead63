"""What tells families in Hugging Face layout apart, read from tensor names and shapes alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf_tools.checkpoint import Checkpoint


@dataclass(frozen=True)
class Signature:
    """Marks of a checkpoint: which kinds of tensors it has, and whether a query projection holds a gate."""

    qk_norm: bool
    linear: bool
    gated: bool
    experts: bool
    shared: bool


def signature(checkpoint: Checkpoint) -> Signature:
    """The marks of a checkpoint in Hugging Face layout."""
    suffixes = {re.sub(r"^model\.layers\.\d+\.", "", name) for name in checkpoint.tensors}
    return Signature(
        qk_norm="self_attn.q_norm.weight" in suffixes,
        linear="linear_attn.in_proj_qkvz.weight" in suffixes,
        gated=any(_gated(checkpoint, name) for name in checkpoint.tensors if name.endswith("self_attn.q_proj.weight")),
        experts=any(suffix.startswith("mlp.experts.") for suffix in suffixes),
        shared=any(suffix.startswith("mlp.shared_expert.") for suffix in suffixes),
    )


def _gated(checkpoint: Checkpoint, query: str) -> bool:
    output = checkpoint.tensors.get(query.replace("q_proj", "o_proj"))
    return output is not None and checkpoint.tensors[query].shape[0] == 2 * output.shape[-1]
