"""What a GGUF records of the adapters that were merged into its source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.formats.gguf.values import Metadata, ValueType, array
from gguf_tools.formats.text_file import is_finite
from gguf_tools.text import shortened


@dataclass(frozen=True)
class RecordedAdapter:
    """An adapter's folder, the SHA-256 of its files then, and the factor that the user gave it."""

    path: Path
    digest: str
    scale: float


def recorded_adapters(header: GGUFHeader) -> tuple[RecordedAdapter, ...]:
    """The adapters that a file records, in the order in which they were merged; paths are seen from where the file lies.

    Raises CheckpointError if a scale is not a finite number.
    """
    folder = header.path.resolve().parent
    columns = [header.get(key) for key in (keys.ADAPTERS, keys.ADAPTERS_DIGESTS, keys.ADAPTERS_SCALES)]
    paths, digests, scales = (column if isinstance(column, tuple) else () for column in columns)
    wrong = next((scale for scale in scales if not is_finite(scale)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{header.path}: metadata {keys.ADAPTERS_SCALES} has {shortened(repr(wrong))}; expected numbers; write the file again"
        )
    return tuple(
        RecordedAdapter(folder / str(path), str(digest), float(scale))
        for path, digest, scale in zip(paths, digests, scales, strict=False)
    )


def refuse_adapter(header: GGUFHeader) -> None:
    """Raise UnsupportedError for the file of an adapter, which is not a model."""
    if header.get("general.type") == "adapter":
        raise UnsupportedError(
            f"{header.path}: is an adapter, not a model; llama.cpp applies it to its base's GGUF (llama-cli -m BASE.gguf --lora "
            f"{header.path.name})"
        )


def adapters_metadata(adapters: Sequence[RecordedAdapter], folder: Path) -> Metadata:
    """The keys that record adapters in a file that will lie in `folder`; none without adapters."""
    if not adapters:
        return {}
    home = folder.resolve()
    paths = [Path(os.path.relpath(adapter.path.resolve(), home)).as_posix() for adapter in adapters]
    return {
        keys.ADAPTERS: array(ValueType.STRING, paths),
        keys.ADAPTERS_DIGESTS: array(ValueType.STRING, [adapter.digest for adapter in adapters]),
        keys.ADAPTERS_SCALES: array(ValueType.FLOAT64, [adapter.scale for adapter in adapters]),
    }
