"""GGUF files that tests of surgery start from, changed by header alone where that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.conversion.request import Operation
from gguf_tools.formats.gguf.header import Field, pack_header, place, read_header, string
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.model import operate
from surgery.recipe import Recipe, parse_text
from surgery.sources import Donor


def operated(source: Path, out: Path, recipe: str, donors: Mapping[str, Path] | None = None) -> Path:
    """The GGUF after the recipe."""
    write_plan(plan_gguf(open_layered(source), with_donors(recipe, donors or {})), out)
    return out


def with_donors(recipe: str, donors: Mapping[str, Path]) -> Recipe:
    """A recipe with the models that it names."""
    return parse_text(recipe).with_donors(Donor(name, path) for name, path in donors.items())


def operation(recipe: str) -> Operation:
    """What `tinyq convert` is given."""
    return Operation(recipe, partial(operate, recipe=parse_text(recipe)))


def with_metadata(source: Path, out: Path, changes: Mapping[str, Field | None]) -> Path:
    """The same tensors under other metadata."""
    header = read_header(source)
    data = source.read_bytes()[header.data_offset :]
    out.write_bytes(header.rewritten(changes, header.tensors) + data)
    return out


def as_architecture(source: Path, out: Path, name: str) -> Path:
    """The same tensors and numbers under the name of another architecture."""
    header = read_header(source)
    prefix = f"{header.architecture}."
    changes: dict[str, Field | None] = {"general.architecture": string(name)}
    for key, field in header.metadata.items():
        if key.startswith(prefix):
            changes |= {key: None, f"{name}.{key.removeprefix(prefix)}": field}
    return with_metadata(source, out, changes)


def raw_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of every tensor."""
    header = read_header(path)
    data = path.read_bytes()
    start = header.data_offset
    return {
        entry.name: (entry.type.name, entry.shape, data[start + entry.offset : start + entry.offset + entry.nbytes])
        for entry in header.tensors
    }


def split(source: Path, prefix: Path, parts: int) -> list[Path]:
    """The file in so many splits, as llama.cpp's gguf-split lays them out."""
    from gguf_tools.formats.gguf.header import ValueType

    header = read_header(source)
    tensors = raw_tensors(source)
    paths = []
    for n, names in enumerate(np.array_split(np.array(list(tensors)), parts)):
        keys = {
            "split.no": Field(ValueType.UINT16, n),
            "split.count": Field(ValueType.UINT16, parts),
            "split.tensors.count": Field(ValueType.INT32, len(tensors)),
        }
        metadata = {**header.metadata, **keys} if n == 0 else keys
        shapes = {entry.name: (entry.name, entry.shape, entry.type) for entry in header.tensors}
        entries, _ = place([shapes[str(name)] for name in names], header.alignment)
        path = prefix.with_name(f"{prefix.name}-{n + 1:05d}-of-{parts:05d}.gguf")
        data = b"".join(tensors[str(name)][2] + b"\0" * (-len(tensors[str(name)][2]) % 32) for name in names)
        path.write_bytes(pack_header(metadata, entries, header.alignment) + data)
        paths.append(path)
    return paths


def close(a: bytes, b: bytes) -> NDArray[np.bool_]:
    """Whether two F32 tensors agree."""
    return np.isclose(np.frombuffer(a, np.float32), np.frombuffer(b, np.float32), rtol=1e-5, atol=1e-7)
