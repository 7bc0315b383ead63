"""The types of metadata values by short names (`u32`, `str`, `[f32]`), and values from text, JSON and TOML."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import Field, ValueType
from gguf_tools.formats.gguf.values import NUMBERS
from gguf_tools.formats.text_file import Kind, load_json, read_text
from gguf_tools.text import expected, shortened

NAMES: dict[str, ValueType] = {
    "u8": ValueType.UINT8,
    "i8": ValueType.INT8,
    "u16": ValueType.UINT16,
    "i16": ValueType.INT16,
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "u64": ValueType.UINT64,
    "i64": ValueType.INT64,
    "f32": ValueType.FLOAT32,
    "f64": ValueType.FLOAT64,
    "bool": ValueType.BOOL,
    "str": ValueType.STRING,
}
"""The types that a value or an item of an array has."""
_SPELLED = {kind: name for name, kind in NAMES.items()}
FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)


@dataclass(frozen=True)
class FieldType:
    """The type of a metadata value; `element` is that of an array's items, None where it is no array."""

    type: ValueType
    element: ValueType | None = None

    def __str__(self) -> str:
        """The type's short name: `u32`, or `[u32]` for an array."""
        return f"[{_SPELLED[self.element]}]" if self.element is not None else _SPELLED[self.type]

    @property
    def item(self) -> ValueType:
        """The type of the value, or of an array's items."""
        return self.type if self.element is None else self.element


def type_of(field: Field) -> FieldType:
    """The type of a value."""
    return FieldType(field.type, field.element)


def field_type(name: str) -> FieldType | None:
    """The type with a short name, or None."""
    inner = name[1:-1] if name.startswith("[") and name.endswith("]") else None
    if inner is not None:
        return FieldType(ValueType.ARRAY, NAMES[inner]) if inner in NAMES else None
    return FieldType(NAMES[name]) if name in NAMES else None


def named_type(name: str, what: str) -> FieldType:
    """The type with a short name. Raises InputError, which begins with `what`, if there is none."""
    found = field_type(name)
    if found is None:
        raise InputError(
            f"{what}: there is no type {name!r}; {expected(name.strip('[]'), NAMES)}, or [TYPE] for an array"
        )
    return found


def made(kind: FieldType, value: Any, what: str) -> Field:
    """The field of a value as JSON and TOML give it. Raises InputError, which begins with `what`, if it does not fit the type."""
    if kind.element is None:
        return Field(kind.type, _item(kind.type, value, what))
    if not isinstance(value, list | tuple):
        raise InputError(f"{what} is {_short(value)}; expected an array, such as [1, 2]")
    items = tuple(_item(kind.element, item, f"{what}, item {n}") for n, item in enumerate(value))
    return Field(kind.type, items, kind.element)


def _item(kind: ValueType, value: Any, what: str) -> Any:
    """A value as it is read back from a file: a float of 32 bits is rounded. Raises InputError if it does not fit."""
    if kind is ValueType.STRING:
        if isinstance(value, str):
            return value
        raise InputError(f"{what} is {_short(value)}; expected a text")
    if kind is ValueType.BOOL:
        if isinstance(value, bool):
            return value
        raise InputError(f"{what} is {_short(value)}; expected true or false")
    number = NUMBERS[kind]
    right = isinstance(value, int | float) if kind in FLOATS else isinstance(value, int)
    if isinstance(value, bool) or not right:
        raise InputError(f"{what} is {_short(value)}; expected {'a number' if kind in FLOATS else 'an integer'}")
    try:
        return number.unpack(number.pack(value))[0]
    except (struct.error, OverflowError) as error:
        raise InputError(f"{what} is {_short(value)}; expected {_range(kind)}") from error


def _range(kind: ValueType) -> str:
    """The values that a type holds, in words."""
    if kind in FLOATS:
        return f"a number that fits {_SPELLED[kind]}"
    bits = 8 * NUMBERS[kind].size
    signed = _SPELLED[kind].startswith("i")
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return f"{low} to {high} ({_SPELLED[kind]})"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else repr(value)
    return shortened(text, 60)


def value_file(text: str) -> Path | None:
    """The file that a KEY=@FILE names, or None."""
    value = text.partition("=")[2]
    return Path(value[1:]) if value.startswith("@") and not value.startswith("@@") else None


def from_text(text: str, kind: FieldType | None, what: str) -> Field:
    """The field of a value on the command line; without a type, that of what it looks like (`guessed`).

    `@FILE` is the text of a file, `@@…` a text that begins with @. Arrays are JSON. Raises InputError, which begins with `what`.
    """
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        text = read_text(Path(text[1:]), Kind.TOKENIZER, InputError)
    if kind is None:
        return guessed(text, what)
    if kind.element is not None:
        return made(kind, _json(text, what), what)
    return made(kind, _plain(kind.type, text, what), what)


def _plain(kind: ValueType, text: str, what: str) -> Any:
    """A number, flag or text of a type. Raises InputError."""
    if kind is ValueType.STRING:
        return text
    word = text.strip()
    if kind is ValueType.BOOL:
        return {"true": True, "false": False}.get(word.lower(), word)
    try:
        return float(word) if kind in FLOATS else int(word, 0)
    except ValueError as error:
        wanted = "a number" if kind in FLOATS else "an integer"
        raise InputError(f"{what} is {_short(word)}; expected {wanted} ({_SPELLED[kind]})") from error


def _json(text: str, what: str) -> Any:
    try:
        return load_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f'{what} is {_short(text)}; expected a JSON array, such as [1, 2] or ["a", "b"] ({shortened(str(error))})'
        ) from error


def guessed(text: str, what: str) -> Field:
    """The field of a text whose type nothing says: a flag, an integer, a number, a JSON array, or a text."""
    word = text.strip()
    if word in ("true", "false"):
        return guessed_value(word == "true", what)
    if word.startswith("[") and word.endswith("]"):
        return guessed_value(_json(word, what), what)
    for read in (int, float):
        try:
            return guessed_value(read(word), what) if math.isfinite(read(word)) else Field(ValueType.STRING, text)
        except ValueError:
            continue
    return Field(ValueType.STRING, text)


def guessed_value(value: Any, what: str) -> Field:
    """The field of a value of Python's or of JSON: a bool, the first of u32, i32, u64 and i64 that holds it, an f32,
    a text, or an array.

    Raises InputError for any other value, and for items of several types.
    """
    values = value if isinstance(value, list | tuple) else [value]
    kinds: list[tuple[type, ...]] = [(bool,), (int,), (int, float), (str,)]
    found = next((kind for kind in kinds if all(type(one) in kind for one in values)), None)
    if not values or found is None:
        raise InputError(f"{what} is {_short(value)}; expected items of one type; say which, such as KEY:[u32]=[]")
    if found == (int,):
        item = _integer_type(values, what)
    else:
        item = {bool: ValueType.BOOL, str: ValueType.STRING}.get(found[0], ValueType.FLOAT32)
    return made(FieldType(item) if values is not value else FieldType(ValueType.ARRAY, item), value, what)


def _integer_type(values: Sequence[int], what: str) -> ValueType:
    """The first of u32, i32, u64 and i64 that holds all values. Raises InputError if none does."""
    for kind in (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64):
        bits = 8 * NUMBERS[kind].size
        low, high = (
            (0, 1 << bits) if kind in (ValueType.UINT32, ValueType.UINT64) else (-(1 << bits - 1), 1 << bits - 1)
        )
        if all(low <= value < high for value in values):
            return kind
    raise InputError(f"{what} is {_short(list(values))}; expected integers of 64 bits")
