"""The public function `open_gguf`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.api.results.gguf import GGUFFile
from gguf_tools.formats.gguf import source
from gguf_tools.sources.hub import local_source


@checked
def open_gguf(path: str | Path) -> GGUFFile:
    """Open a GGUF, with all its shards if it is split: its metadata, and its tensors, decoded when they are read.

    Raises CheckpointError, naming file and key or tensor, if it is not a GGUF, truncated or broken.
    """
    return GGUFFile(source.open_gguf(local_source(path)))
