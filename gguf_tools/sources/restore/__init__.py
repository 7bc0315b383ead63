"""Restoring the published layout of checkpoints that other programs saved again.

Each step is a function from Checkpoint to Checkpoint, independent of the family. It decides by metadata, tensor names and
dtypes, never by the values of weights, and notes for the user what it changed. A layout that cannot be restored is refused, and
the error names the tensor and says what to do. A checkpoint in the published layout is returned unchanged, so restoring twice
equals restoring once.
"""

from __future__ import annotations

from functools import partial

from gguf_tools.sources.adapters.merge import merge_adapters
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
from gguf_tools.sources.restore.unpack import unpack

__all__ = ["restore"]


def restore(checkpoint: Checkpoint, *, text_only: bool = True) -> Checkpoint:
    """The checkpoint in the published layout, with its adapters merged; its tensors stay lazy.

    Raises UnsupportedError, naming the tensor, for weights packed in a format that is not read, for adapters, and, unless
    `text_only`, for a vision or audio tower; CheckpointError for tensors that do not fit together.
    """
    steps = (
        unpack,
        refuse_packed,
        resolve_aliases,
        set_buffers_aside,
        drop_runtime_scales,
        widen_fp8,
        partial(text_part, text_only=text_only),
        published_names,
        leave_heads_out,
        undo_mlx,
        merge_adapters,
    )
    for step in steps:
        checkpoint = step(checkpoint)
    return checkpoint
