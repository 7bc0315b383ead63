"""The result of `open_gguf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.tables import Block, Column, Facts, Lines, Shown, Table
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import as_json, shortened

TENSOR_COLUMNS = (
    Column("tensor", left=True, key=True, least=24),
    Column("shape", left=True),
    Column("type", left=True),
)
VALUE = 96
"""Most characters of a metadata value that are shown."""


@dataclass(frozen=True, repr=False)
class GGUFFile(Shown):
    """An open GGUF: its metadata, and its tensors, read lazily."""

    source: GGUFSource

    @property
    def path(self) -> Path:
        """The file's path; the first shard's if it is split."""
        return self.source.path

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises CheckpointError if it is missing."""
        return self.source.architecture

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata values by key, arrays as tuples."""
        return {key: field.value for key, field in self.source.header.metadata.items()}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors by name; a tensor's `array()` is its float32 values, dequantized, in numpy's order of axes."""
        return self.source.tensors

    def as_dict(self) -> dict[str, Any]:
        """Path, metadata, and each tensor's name, shape, type and size in bytes."""
        return {
            "path": str(self.path),
            "metadata": as_json(self.metadata),
            "tensors": [
                {"name": entry.name, "shape": list(entry.shape), "type": entry.type.name, "bytes": entry.nbytes}
                for entry in self.source.header.tensors
            ],
        }

    def blocks(self) -> Sequence[Block]:
        """The metadata, long values shortened, and a table of tensors."""
        known = [(key, _short(value)) for key, value in self.metadata.items()]
        width = 1 + max((len(key) for key, _ in known), default=0)
        rows = [(entry.name, "×".join(map(str, entry.shape)), entry.type.name) for entry in self.source.header.tensors]
        facts = Facts([("path", str(self.path)), *known], max(width, 5))
        return [facts, Lines(), Table(TENSOR_COLUMNS, rows)]


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 8:
        return f"{len(value):,} values: {shortened(', '.join(map(str, value[:8])), VALUE)}, …"
    return shortened(", ".join(map(str, value)) if isinstance(value, tuple) else str(value), VALUE)
