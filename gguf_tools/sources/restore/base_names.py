"""Decoders saved without their language model head (transformers' AutoModel), whose tensor names lack `model.`."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import EMBEDDING

INSIDE = re.compile(r"(embed_tokens|layers|norm|rotary_emb)\..*")
PREFIX = "model."


def published_names(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with `model.` before the decoder's tensor names, if no name has that prefix."""
    names = checkpoint.tensors
    if EMBEDDING.removeprefix(PREFIX) not in names or any(name.startswith(PREFIX) for name in names):
        return checkpoint
    tensors = {PREFIX + name if INSIDE.fullmatch(name) else name: tensor for name, tensor in names.items()}
    note = "tensor names lack the prefix `model.` (saved from transformers' AutoModel): it is added"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))
