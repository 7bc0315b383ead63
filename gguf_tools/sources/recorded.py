"""Checkpoints as a GGUF that was made from them records that they were read."""

from __future__ import annotations

from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.sources.checkpoint import Checkpoint


def has_description(header: GGUFHeader) -> bool:
    """Whether the file records a description of its source's tensors."""
    return isinstance(header.get(keys.DESCRIPTION), str)


def as_recorded(checkpoint: Checkpoint, header: GGUFHeader) -> Checkpoint:
    """The checkpoint with the description that the file records, or none if it was read by a family."""
    text = header.get(keys.DESCRIPTION)
    return checkpoint.described(header.path, text) if isinstance(text, str) else checkpoint
