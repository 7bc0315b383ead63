"""The two sides of a comparison: tensors under their GGUF names, and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.families.base import CheckType
from gguf_tools.formats.gguf.header import GGUFHeader, is_gguf
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor, open_gguf
from gguf_tools.tensors.base import Tensor
from gguf_tools.verification.expectation import expect, stated
from gguf_tools.verification.metadata import (
    MetadataFinding,
    MetadataVerdict,
    compare_metadata,
    first_difference,
    same_value,
    value_text,
)

PROVENANCE = ("tinyq.", "split.")
"""How keys begin that say where a file came from and how it is stored, but not what it is."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The tensors of one side in their order. `optional` are tensors that need not exist on the other side.

    Those of a checkpoint are the tensors that a GGUF converted from it has.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    optional: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def type_of(self, name: str) -> str:
        """The type that the file stores a tensor in, or that the checkpoint's weights have."""
        tensor = self.tensors[name]
        return tensor.entry.type.name if isinstance(tensor, GGUFTensor) else tensor.dtype.lower()


def open_sides(a: Path, b: Path, check_type: CheckType | None = None) -> tuple[Side, Side, tuple[MetadataFinding, ...]]:
    """Both sides, and the metadata in which they differ (`found` is B's value, `expected` A's).

    A checkpoint is converted, lazily, to the architecture of the GGUF on the other side; layer surgery that the GGUF records
    is not applied to it. Raises InputError if neither is a GGUF, UnsupportedError if the checkpoint cannot be converted to
    the architecture.
    """
    for path in (a, b):
        if not path.exists():
            raise InputError(f"{path}: does not exist; give a GGUF file or a checkpoint")
    files = [path.is_file() and is_gguf(path) for path in (a, b)]
    if not any(files):
        raise InputError(f"{a} and {b} are checkpoints; expected at least one GGUF: convert one of them first")
    if all(files):
        first, second = open_gguf(a), open_gguf(b)
        return _file(first), _file(second), _between(first.header, second.header)
    source = open_gguf(b if files[1] else a)
    file, checkpoint = _file(source), a if files[1] else b
    expected = expect(source.header, checkpoint, None, check_type=check_type)
    given = compare_metadata(source.header, expected.metadata, stated(source))
    found = tuple(entry for entry in given if entry.verdict == "different")
    other = Side(path=checkpoint, tensors=expected.tensors, optional=expected.optional, notes=expected.notes)
    if files[1]:
        return other, file, found
    turned = (
        MetadataFinding(key=entry.key, verdict=entry.verdict, found=entry.expected, expected=entry.found)
        for entry in found
    )
    return file, other, tuple(turned)


def _file(source: GGUFSource) -> Side:
    return Side(path=source.path, tensors=source.tensors)


def _between(a: GGUFHeader, b: GGUFHeader) -> tuple[MetadataFinding, ...]:
    """The keys whose values differ: in A's order, then those that only B has; provenance last, and without a verdict."""
    first, second = ({key: field.value for key, field in header.metadata.items()} for header in (a, b))
    keys = sorted(dict.fromkeys([*first, *second]), key=lambda key: key.startswith(PROVENANCE))
    return tuple(_finding(key, first.get(key), second.get(key)) for key in keys if _differ(key, first, second))


def _differ(key: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    if (key in first) != (key in second):
        return True
    one, other = first[key], second[key]
    return isinstance(one, tuple) != isinstance(other, tuple) or not same_value(one, other)


def _finding(key: str, first: Any, second: Any) -> MetadataFinding:
    if first is None or second is None:
        left, right = (("" if value is None else value_text(value)) for value in (first, second))
    else:
        left, right = first_difference(first, second)
    verdict: MetadataVerdict = "unknown" if key.startswith(PROVENANCE) else "different"
    return MetadataFinding(key=key, verdict=verdict, found=right, expected=left)
