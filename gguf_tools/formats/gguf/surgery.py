"""What a GGUF records of layer surgery: the recipe, and the other models that it took layers from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import GGUFHeader
from gguf_tools.formats.gguf.values import Metadata, ValueType, array
from gguf_tools.formats.text_file import load_toml


@dataclass(frozen=True)
class RecordedSource:
    """A model, by the name that the recipe calls it ("" for the one that was operated on), and its SHA-256 then."""

    name: str
    path: Path
    digest: str


@dataclass(frozen=True)
class RecordedSurgery:
    """The recipe as text, and the sources that it names."""

    text: str
    sources: tuple[RecordedSource, ...] = ()

    @property
    def base(self) -> RecordedSource | None:
        """The GGUF that was operated on, where it is recorded."""
        return next((source for source in self.sources if not source.name), None)

    @property
    def donors(self) -> tuple[RecordedSource, ...]:
        """The other models."""
        return tuple(source for source in self.sources if source.name)


def recorded_surgery(header: GGUFHeader) -> RecordedSurgery | None:
    """The surgery that a file records, None for none; paths are seen from where the file lies."""
    text = header.get(keys.SURGERY)
    if not isinstance(text, str) or not text:
        return None
    folder = header.path.resolve().parent
    columns = [header.get(key) for key in (keys.SURGERY_SOURCES, keys.SURGERY_PATHS, keys.SURGERY_DIGESTS)]
    names, paths, digests = (tuple(map(str, column)) if isinstance(column, tuple) else () for column in columns)
    rows = zip(names, paths, digests, strict=False)
    return RecordedSurgery(text, tuple(RecordedSource(name, folder / path, digest) for name, path, digest in rows))


def recorded_recipe(header: GGUFHeader) -> str | None:
    """All layer surgery that a file records, as recipe text: that on the checkpoint that it was made from, then its own.

    None if there was none; what cannot be read of the checkpoint's recipe is left out.
    """
    steps: list[str] = []
    text = header.get(keys.SOURCE_RECIPE)
    if isinstance(text, str):
        try:
            found = load_toml(text).get("steps")
        except (ValueError, RecursionError):
            found = None
        steps += [step for step in found if isinstance(step, str)] if isinstance(found, list) else []
    own = recorded_surgery(header)
    return " + ".join([*steps, *([own.text] if own else [])]) or None


def sources_metadata(sources: Sequence[RecordedSource], folder: Path) -> Metadata:
    """The keys that record sources in a file that will lie in `folder`; none without sources."""
    if not sources:
        return {}
    home = folder.resolve()
    paths = [Path(os.path.relpath(source.path.resolve(), home)).as_posix() for source in sources]
    return {
        keys.SURGERY_SOURCES: array(ValueType.STRING, [source.name for source in sources]),
        keys.SURGERY_PATHS: array(ValueType.STRING, paths),
        keys.SURGERY_DIGESTS: array(ValueType.STRING, [source.digest for source in sources]),
    }
