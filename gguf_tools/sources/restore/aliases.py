"""Tensors that a safetensors file holds under one of their names.

`safetensors.torch.save_model` writes a tensor that has several names once, under the first, and the others into
`__metadata__` (name left out → name kept).
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.sources.checkpoint import Checkpoint


def resolve_aliases(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the tensors under all of their names."""
    known = checkpoint.tensors
    added = {name: known[kept] for name, kept in checkpoint.metadata.items() if kept in known and name not in known}
    if not added:
        return checkpoint
    first = next(iter(added))
    more = f" and {len(added) - 1} more" if len(added) > 1 else ""
    note = f"the file's metadata give {checkpoint.metadata[first]} the name {first} too{more}"
    return replace(checkpoint, tensors={**known, **added}, notes=(*checkpoint.notes, note))
