"""A decoder saved without the model around it (transformers' AutoModel): its names lack `model.`."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import EMBEDDING

INSIDE = re.compile(r"(embed_tokens|layers|norm|rotary_emb)\..*")
PREFIX = "model."


def published_names(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with `model.` before the decoder's names, where none has it."""
    names = checkpoint.tensors
    if EMBEDDING.removeprefix(PREFIX) not in names or any(name.startswith(PREFIX) for name in names):
        return checkpoint
    tensors = {PREFIX + name if INSIDE.fullmatch(name) else name: tensor for name, tensor in names.items()}
    note = "the tensors' names lack `model.`, as the decoder has them by itself"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))
