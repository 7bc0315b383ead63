"""Checkpoints that were saved again by other programs, brought back to the published layout.

Each step is a map from Checkpoint to Checkpoint beside the families, decided by metadata, tensor names and types and never
by weights' values; what it did is noted for the user. What cannot be brought back is refused by name, with what to do.
A checkpoint in the published layout passes unchanged, so that restoring twice is the same as restoring once.
"""

from __future__ import annotations

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.fp8 import widen_fp8
from gguf_tools.sources.restore.mlx import undo_mlx
from gguf_tools.sources.restore.packed import refuse_packed
from gguf_tools.sources.restore.towers import text_part

__all__ = ["restore"]


def restore(checkpoint: Checkpoint, *, text_only: bool = True) -> Checkpoint:
    """The checkpoint in the published layout, its tensors still lazy.

    Raises UnsupportedError, naming the tensor, for weights packed by another quantizer, for adapters, and, unless
    `text_only`, for a vision or audio tower.
    """
    refuse_packed(checkpoint)
    return undo_mlx(text_part(widen_fp8(checkpoint), text_only=text_only))
