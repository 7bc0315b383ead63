"""Checkpoints that were saved again by other programs, brought back to the published layout.

Each step is a map from Checkpoint to Checkpoint beside the families, decided by metadata, tensor names and types and never
by weights' values; what it did is noted for the user. What cannot be brought back is refused by name, with what to do.
A checkpoint in the published layout passes unchanged, so that restoring twice is the same as restoring once.
"""

from __future__ import annotations

from functools import partial

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.aliases import resolve_aliases
from gguf_tools.sources.restore.base_names import published_names
from gguf_tools.sources.restore.buffers import set_buffers_aside
from gguf_tools.sources.restore.fp8 import widen_fp8
from gguf_tools.sources.restore.heads import leave_heads_out
from gguf_tools.sources.restore.mlx import undo_mlx
from gguf_tools.sources.restore.packed import refuse_packed
from gguf_tools.sources.restore.scales import drop_runtime_scales
from gguf_tools.sources.restore.towers import text_part

__all__ = ["restore"]


def restore(checkpoint: Checkpoint, *, text_only: bool = True) -> Checkpoint:
    """The checkpoint in the published layout, its tensors still lazy.

    Raises UnsupportedError, naming the tensor, for weights packed by another quantizer, for adapters, and, unless
    `text_only`, for a vision or audio tower.
    """
    refuse_packed(checkpoint)
    steps = (
        resolve_aliases,
        set_buffers_aside,
        drop_runtime_scales,
        widen_fp8,
        partial(text_part, text_only=text_only),
        published_names,
        leave_heads_out,
        undo_mlx,
    )
    for step in steps:
        checkpoint = step(checkpoint)
    return checkpoint
