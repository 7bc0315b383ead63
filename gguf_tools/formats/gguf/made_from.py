"""What a GGUF records of the GGUF that it was made from: its digest and type, and whether quantized weights were encoded anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TypeVar

from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Field, GGUFHeader
from gguf_tools.formats.gguf.values import Metadata, string

T = TypeVar("T")

PLACEHOLDER = "0" * 64
"""In place of the digest until the source has been read, of the same length."""


def type_name(header: GGUFHeader) -> str:
    """The type recipe that the file records, else the type of most of its weights, in lower case."""
    recorded = header.get(keys.TYPE)
    if isinstance(recorded, str):
        return recorded
    counts: Counter[str] = Counter()
    for entry in header.tensors:
        counts[entry.type.name] += prod(entry.shape)
    return max(counts, key=lambda name: counts[name]).lower() if counts else "unknown"


def made_from(header: GGUFHeader, *, requantized: bool, digest: str = PLACEHOLDER) -> Metadata:
    """The keys for a file made from the file with this header; `requantized` if weights that were quantized are encoded anew."""
    kind = type_name(header)
    found = {keys.MADE_FROM_DIGEST: string(digest), keys.MADE_FROM_TYPE: string(kind)}
    return found | ({keys.REQUANTIZED_FROM: string(kind)} if requantized else {})


def digested(metadata: Mapping[str, T], digest: str) -> dict[str, T | Field]:
    """The metadata with the source's digest in place of the placeholder."""
    return {**metadata, keys.MADE_FROM_DIGEST: string(digest)}
