"""Random metadata, and what gguf-py reads of a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from hypothesis import strategies as st

from gguf_tools.editing.values import NAMES, FieldType
from gguf_tools.formats.gguf.values import NUMBERS, Field, ValueType

ITEMS: dict[ValueType, st.SearchStrategy[Any]] = {
    ValueType.STRING: st.text(max_size=40)
    | st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    ValueType.BOOL: st.booleans(),
    ValueType.FLOAT32: st.floats(width=32),
    ValueType.FLOAT64: st.floats(),
    **{
        kind: st.integers(
            *(
                (-(1 << 8 * packer.size - 1), (1 << 8 * packer.size - 1) - 1)
                if packer.format[1:].islower()
                else (0, (1 << 8 * packer.size) - 1)
            )
        )
        for kind, packer in NUMBERS.items()
        if packer.format[1:] in "bBhHiIqQ"
    },
}
TYPES = st.sampled_from(list(NAMES.values())).flatmap(
    lambda kind: st.sampled_from([FieldType(kind), FieldType(ValueType.ARRAY, kind)])
)


def _field(kind: FieldType) -> st.SearchStrategy[Field]:
    items = ITEMS[kind.item]
    if kind.element is None:
        return items.map(lambda value: Field(kind.type, value))
    return st.lists(items, max_size=80).map(lambda values: Field(kind.type, tuple(values), kind.element))


FIELDS = TYPES.flatmap(_field)
KEYS = st.from_regex(r"my\.[a-z_]{1,12}(\.[a-z0-9_]{1,8})?", fullmatch=True)


def bits(value: Any) -> Any:
    """A value that equals another exactly if it has the same bits, but for NaN."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1, value))
    return [bits(one) for one in value] if isinstance(value, list | tuple) else value


def as_gguf_py(path: Path) -> dict[str, tuple[list[int], Any]]:
    """Every key with its types and its value (texts as bytes), as gguf-py reads them."""
    found = {}
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith("GGUF."):
            text = field.types[-1] == gguf.GGUFValueType.STRING
            values = [bytes(field.parts[n]) if text else field.parts[n].tolist()[0] for n in field.data]
            found[key] = ([int(kind) for kind in field.types], bits(values))
    return found


def expected(field: Field) -> tuple[list[int], Any]:
    """What gguf-py reads of a field; of an empty array it gives no type of items."""
    values = field.value if field.element is not None else (field.value,)
    raw = [one.encode("utf-8", "surrogateescape") if isinstance(one, str) else one for one in values]
    types = [int(field.type), *([int(field.element)] if field.element is not None and values else [])]
    return types, bits(raw)


def tensors(path: Path) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    """Every tensor by name, in order: its shape, type and bytes."""
    return {
        tensor.name: (tuple(map(int, tensor.shape)), int(tensor.tensor_type), np.asarray(tensor.data).tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }
