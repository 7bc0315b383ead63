r"""A header as TOML that can be edited and given back: `[metadata]` with a key and its type on each line, `[tensors]` with names.

    [metadata]
    "qwen3.block_count:u32" = 28
    "tokenizer.ggml.tokens:[str]" = { kept = 151936, digest = "5f0c…" }

    [tensors]
    "blk.0.attn_q.weight" = "blk.0.attn_q.weight"

Every value comes back bit for bit. What TOML has no value for (text that is not UTF-8, a NaN with other bits than the usual) is
stated by its bytes, `{ base64 = "…" }`: those of the text, or of numbers as they stand in the file. A long array is `kept`, with
its length and SHA-256, unless it is asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gguf_tools.editing.check import MANAGED
from gguf_tools.editing.plan import Assignment, expected_type
from gguf_tools.editing.values import FLOATS, FieldType, made, named_type, type_of
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import Field, GGUFHeader, TensorEntry, ValueType
from gguf_tools.formats.gguf.values import NUMBERS
from gguf_tools.formats.text_file import Kind, parse_toml, read_text
from gguf_tools.text import shortened

LONG = 64
"""Items from which on an array is `kept`, unless arrays are asked for whole."""
_ESCAPED = re.compile('["\\\\\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]')
_LINES = re.compile('\\\\|"(?="")|"\\Z|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]')
"""What is escaped in a text of one line, and in one of several: what moves a cursor or reorders text, and TOML's own signs."""


def header_toml(header: GGUFHeader, tensors: Sequence[TensorEntry], *, whole: bool = False) -> Iterator[str]:
    """The lines of a header; arrays of more than `LONG` items are `kept` unless `whole`."""
    yield f"# {header.path.name}: edit, and give back with tinyq edit {header.path.name} OUT.gguf --from THIS_FILE"
    yield "# A line that is removed removes its key; a new line is a new key."
    yield ""
    yield "[metadata]"
    for key, field in header.metadata.items():
        if _is_shown(key):
            yield f"{_basic(f'{key}:{type_of(field)}')} = {_value(field, whole)}"
    yield ""
    yield '# "name" = "new name"'
    yield "[tensors]"
    for entry in tensors:
        yield f"{_basic(entry.name)} = {_basic(entry.name)}"


def _is_shown(key: str) -> bool:
    """Whether a key stands in the text; one that is not UTF-8 cannot, and is kept."""
    return key not in MANAGED and _expressible(ValueType.STRING, key)


def _value(field: Field, whole: bool) -> str:
    """A value as TOML."""
    kind = type_of(field)
    values = field.value if kind.element is not None else (field.value,)
    if kind.element is not None and len(values) > LONG and not whole:
        return f'{{ kept = {len(values)}, digest = "{_digest(field)}" }}'
    if not all(_expressible(kind.item, value) for value in values) or not _exact(field):
        return f'{{ base64 = "{base64.b64encode(_raw(field)).decode()}" }}'
    if kind.element is None:
        return _text(field.value) if kind.type is ValueType.STRING else _number(kind.type, field.value)
    show = _basic if kind.item is ValueType.STRING else lambda value: _number(kind.item, value)
    return f"[{', '.join(map(show, values))}]"


def _expressible(kind: ValueType, value: Any) -> bool:
    """Whether TOML has the value: a text that is Unicode, an integer of 64 bits with a sign."""
    if kind is ValueType.STRING:
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return kind is not ValueType.UINT64 or value < 1 << 63


def _exact(field: Field) -> bool:
    """Whether the decoded value gives the stored bytes again: not for every NaN, nor for a bool of another byte than 0 and 1."""
    kind = type_of(field)
    if kind.item is ValueType.STRING:
        return True
    values = field.value if kind.element is not None else (field.value,)
    if kind.item in FLOATS:
        values = tuple(math.nan if value != value else value for value in values)
    return bytes(Field(kind.type, values if kind.element is not None else values[0], kind.element).packed()) == bytes(
        field.packed()
    )


def _raw(field: Field) -> bytes:
    """The bytes of a text, or of all numbers or length-prefixed texts of an array, without type and count."""
    packed = bytes(field.packed())
    return packed[8:] if field.type is ValueType.STRING else packed[12:] if field.type is ValueType.ARRAY else packed


def _digest(field: Field) -> str:
    return hashlib.sha256(field.packed()).hexdigest()


def _number(kind: ValueType, value: Any) -> str:
    """A number or flag; a float with the fewest digits that give it back."""
    if kind is ValueType.BOOL:
        return "true" if value else "false"
    if kind not in FLOATS:
        return str(value)
    if not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    text = repr(value)
    if kind is ValueType.FLOAT32:
        short = repr(float(str(np.float32(value))))
        text = short if struct.pack("<f", float(short)) == struct.pack("<f", value) else text
    return text


def _basic(text: str) -> str:
    """A text in one line."""
    return '"' + _ESCAPED.sub(_escape, text).replace("\n", "\\n") + '"'


def _text(text: str) -> str:
    """A text, over several lines if it has them."""
    return f'"""\n{_LINES.sub(_escape, text)}"""' if "\n" in text else _basic(text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    named = {'"': '\\"', "\\": "\\\\", "\t": "\\t", "\r": "\\r"}
    return named.get(character, f"\\u{ord(character):04x}")


def read_header_toml(path: Path, header: GGUFHeader) -> tuple[list[Assignment], list[str], dict[str, str]]:
    """What a file that was printed by `header_toml` and edited states: values, keys to remove, and tensors' new names.

    Raises InputError, naming the key, if it is broken, or keeps an array that the GGUF does not have.
    """
    data = parse_toml(read_text(path, Kind.HEADER, InputError), path)
    for name, table in data.items():
        if name not in ("metadata", "tensors") or not isinstance(table, dict):
            raise InputError(f"{path}: {shortened(name)} is not known; expected the tables [metadata] and [tensors]")
    if "metadata" not in data:
        raise InputError(
            f"{path}: has no table [metadata], so all keys would be removed; begin with what --show prints"
        )
    stated = [_stated(name, value, header, path) for name, value in data["metadata"].items()]
    keys = {one.key for one in stated}
    if len(keys) < len(stated):
        double = next(one.key for n, one in enumerate(stated) if any(one.key == other.key for other in stated[:n]))
        raise InputError(f"{path}: {double} stands twice, with two types; remove one")
    removed = [key for key in header.metadata if key not in keys and _is_shown(key)]
    names: Mapping[str, Any] = data.get("tensors", {})
    wrong = next((old for old, new in names.items() if not isinstance(new, str)), None)
    if wrong is not None:
        raise InputError(f"{path}: the new name of {shortened(wrong)} is {names[wrong]!r}; expected a text")
    return stated, removed, {old: new for old, new in names.items() if old != new}


def _stated(name: str, value: Any, header: GGUFHeader, path: Path) -> Assignment:
    """The key, type and value of one line. Raises InputError."""
    left, colon, spelled = name.rpartition(":")
    key = left if colon else name
    kind = (
        named_type(spelled, f"{path}: {shortened(name)}")
        if colon
        else expected_type(key, header, is_array=isinstance(value, list))
    )
    if kind is None:
        raise InputError(
            f'{path}: {shortened(name)} has no type; write it as "{shortened(name)}:str" or with another type'
        )
    what = f"{path}: {key}"
    if not isinstance(value, dict):
        return Assignment(key, made(kind, value, what), typed=True)
    if set(value) == {"kept", "digest"}:
        old = header.metadata.get(key)
        if old is None or type_of(old) != kind or _digest(old) != value["digest"]:
            raise InputError(
                f"{what} is kept, but {header.path} has another value; print it again with --show --arrays"
            )
        return Assignment(key, old, typed=True)
    if set(value) == {"base64"} and isinstance(value["base64"], str):
        return Assignment(key, _from_raw(kind, value["base64"], what), typed=True)
    raise InputError(f"{what} is a table; expected a value, or what --show printed")


def _from_raw(kind: FieldType, text: str, what: str) -> Field:
    """The field of bytes as `_raw` gives them. Raises InputError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{what}: is not base64 ({error}); print it again with --show") from error
    if kind.type is ValueType.STRING:
        return Field(kind.type, raw.decode("utf-8", "surrogateescape"))
    if kind.item is ValueType.STRING:
        return Field(kind.type, tuple(_texts(raw, what)), kind.element)
    size = NUMBERS[kind.item].size
    if len(raw) % size or (kind.element is None and len(raw) != size):
        raise InputError(f"{what}: has {len(raw)} bytes; expected {size} for each {kind.item.name.lower()}")
    return RawField(kind, raw)


def _texts(raw: bytes, what: str) -> Iterator[str]:
    """The length-prefixed texts of an array of strings. Raises InputError if they do not end where the bytes do."""
    at = 0
    while at < len(raw):
        stop = at + 8 + (struct.unpack_from("<Q", raw, at)[0] if at + 8 <= len(raw) else len(raw))
        if stop > len(raw):
            raise InputError(f"{what}: its bytes end within a text; print it again with --show")
        yield raw[at + 8 : stop].decode("utf-8", "surrogateescape")
        at = stop


class RawField(Field):
    """Numbers as they stand in a file, which keeps bits that decoding may change."""

    def __init__(self, kind: FieldType, raw: bytes) -> None:
        letters = NUMBERS[kind.item].format[1:]
        values = struct.unpack(f"<{len(raw) // NUMBERS[kind.item].size}{letters}", raw)
        head = b"" if kind.element is None else struct.pack("<IQ", kind.element, len(values))
        vars(self).update(
            type=kind.type,
            element=kind.element,
            value=values[0] if kind.element is None else values,
            _bytes=head + raw,
        )

    def packed(self) -> bytes:
        """The value's bytes in a header."""
        return self._bytes

    _bytes: bytes
