"""Buffers saved with the weights, such as rope tables and causal masks, which are computed rather than learned.

They are separated here by name and rank; `gguf_tools.families.saved_buffers` later checks that they agree with the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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
PIECE = 1 << 20
"""Elements of a mask that are read at a time."""
HIDDEN = -1e4
"""Upper bound on the value that a mask adds to a score to hide it (float16's −65504, GPT-2's −10000, −∞)."""
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


def is_causal(tensor: Tensor) -> bool:
    """Whether the tensor, shape (…, positions, positions), is a causal mask.

    Its non-zero entries are either the visible positions (1 or true) or the hidden ones (true, or a large negative number).
    """
    size = tensor.shape[-1] if tensor.shape else 0
    if len(tensor.shape) < 2 or tensor.shape[-2] != size or tensor.size != size * size:
        return False
    if size == 1:
        return True
    shown = bool(tensor.numbers(0, 1)[0])
    for first, rows in _row_blocks(tensor, size):
        below = np.arange(size)[None] <= np.arange(first, first + len(rows))[:, None]
        if not np.array_equal(rows != 0, below if shown else ~below):
            return False
        if rows.min() < 0 and not (not shown and rows[~below].max(initial=-np.inf) <= HIDDEN):
            return False
    return True


def _row_blocks(tensor: Tensor, size: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    step = max(1, PIECE // size)
    for first in range(0, size, step):
        last = min(first + step, size)
        yield first, tensor.numbers(first * size, last * size).reshape(-1, size)
