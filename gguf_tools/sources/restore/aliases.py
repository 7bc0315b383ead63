"""Shared tensors that a safetensors file stores under one of their names.

`safetensors.torch.save_model` writes a tensor with several names once, and records the other names in `__metadata__`
(omitted name → stored name).
"""

from __future__ import annotations

from dataclasses import replace

from gguf_tools.sources.checkpoint import Checkpoint


def resolve_aliases(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with each shared tensor under all of its names."""
    known = checkpoint.tensors
    added = {name: known[kept] for name, kept in checkpoint.metadata.items() if kept in known and name not in known}
    if not added:
        return checkpoint
    first = next(iter(added))
    more = f" and {len(added) - 1} more" if len(added) > 1 else ""
    note = f"by the file's metadata, {first} is the same tensor as {checkpoint.metadata[first]}{more}"
    return replace(checkpoint, tensors={**known, **added}, notes=(*checkpoint.notes, note))
