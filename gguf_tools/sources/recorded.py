"""Checkpoints as a GGUF that was made from them records that they were read."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.adapters import recorded_adapters
from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.sources.adapters.adapter import Adapter, GivenAdapter, is_adapter, open_adapter
from gguf_tools.sources.checkpoint import Checkpoint


def has_description(header: GGUFHeader) -> bool:
    """Whether the file records a description of its source's tensors."""
    return isinstance(header.get(keys.DESCRIPTION), str)


def as_recorded(checkpoint: Checkpoint, header: GGUFHeader) -> Checkpoint:
    """The checkpoint with the description that the file records, or none if it was read by a family."""
    text = header.get(keys.DESCRIPTION)
    return checkpoint.described(header.path, text) if isinstance(text, str) else checkpoint


def with_recorded_adapters(checkpoint: Checkpoint, header: GGUFHeader) -> Checkpoint:
    """The checkpoint with the adapters that the file records as merged into it.

    Raises CheckpointError if one is no longer there, or is another one now.
    """
    found = []
    for recorded in recorded_adapters(header):
        if not is_adapter(recorded.path):
            raise CheckpointError(
                f"{header.path}: was made with the adapter {recorded.path}, which is no longer there; give its place with --lora"
            )
        adapter = open_adapter(GivenAdapter(recorded.path, recorded.scale))
        if adapter.digest != recorded.digest:
            raise CheckpointError(
                f"{recorded.path}: is not, or no longer, the adapter that {header.path} was made with; give that with --lora"
            )
        found.append(adapter)
    return checkpoint.adapted_with(found)


def are_recorded(adapters: Sequence[Adapter], header: GGUFHeader) -> bool:
    """Whether these are the adapters that the file records, in its order and with its scales."""
    recorded = recorded_adapters(header)
    return len(adapters) == len(recorded) and all(
        adapter.scale == then.scale and adapter.digest == then.digest
        for adapter, then in zip(adapters, recorded, strict=True)
    )
