"""Buffers saved with the weights, such as rope tables and causal masks, which are computed rather than learned.

They are separated here by name and rank; `gguf_tools.families.saved_buffers` later checks that they agree with the model.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import Tensor

FREQUENCIES = re.compile(r"(.*\.)?(_?(original_)?inv_freq|rope\.freqs)")
TABLES = re.compile(
    r"(.*\.)?(_?(?P<part>cos|sin)(_cached|_cache)?|freqs_(?P<side>cos|sin)|freqs_cis|rope_cache|rope\.cache)"
)
MASKS = re.compile(r"(.*\.)?(_?(causal_|attn_|attention_)?mask|tril|triu|(attn|attention|self_attn)\.bias)")
MASKED = re.compile(r"(.*\.)?(attn|attention|self_attn)\.masked_bias")
POSITIONS = re.compile(r"(.*\.)?position_ids")
EXTRA = re.compile(r"(.*\.)?_extra_state")
KINDS = (FREQUENCIES, TABLES, MASKS, MASKED, POSITIONS, EXTRA)


def is_buffer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a buffer. A projection's bias has one axis; the causal mask that GPT-2 calls `bias` has more."""
    if MASKS.fullmatch(name) and name.endswith(".bias"):
        return len(tensor.shape) > 1
    return any(kind.fullmatch(name) for kind in KINDS)


def set_buffers_aside(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its buffers moved from `tensors` to `buffers`."""
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if is_buffer(name, tensor)}
    if not found:
        return checkpoint
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in found}
    return replace(checkpoint, tensors=tensors, buffers={**checkpoint.buffers, **found})
