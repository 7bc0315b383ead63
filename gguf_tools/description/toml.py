"""Reads a description from TOML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf_tools.description.schema import EXPERT, LAYER, Description, KeyPath, Override, Source, has_layer
from gguf_tools.errors import InputError
from gguf_tools.formats.text_file import Kind, parse_toml, read_text
from gguf_tools.text import shortened

TABLES = ("model", "norm", "layer", "layers", "tensors", "unused")
MOST_LAYERS = 4096
_HEADER = re.compile(r"\s*\[\[?\s*(?P<keys>[^\[\]]+?)\s*\]\]?\s*(#.*)?")
_KEY = re.compile(r"\s*(?P<keys>(?:[\w.+-]+|\"[^\"]*\"|'[^']*'|\s*\.\s*)+)\s*=")
_ONE = re.compile(r"\"([^\"]*)\"|'([^']*)'|([\w-]+)")


def read_description(path: Path) -> Description:
    """The description in a file. Raises InputError, naming the line, if it is broken."""
    return parse_description(read_text(path, Kind.CONFIG, InputError), path)


def parse_description(text: str, path: Path) -> Description:
    """The description in `text`, which `path` names in errors. Raises InputError, naming the line, if it is broken."""
    data = parse_toml(text, path)
    lines = _lines(text)
    stated = Description(path=path, model={}, norm={}, layer={}, lines=lines)
    for key in data:
        if key not in TABLES:
            raise stated.error((key,), f"is not known; expected {', '.join(TABLES)}")
    tables = {name: _table(stated, data.get(name, {}), (name,)) for name in ("model", "norm", "layer", "tensors")}
    inside = _table(stated, tables["tensors"].pop("layer", {}), ("tensors", "layer"))
    return Description(
        path=path,
        model=tables["model"],
        norm=tables["norm"],
        layer=tables["layer"],
        overrides=tuple(_overrides(stated, data.get("layers", []))),
        outside=tuple(_sources(stated, tables["tensors"], ("tensors",))),
        inside=tuple(_sources(stated, inside, ("tensors", "layer"))),
        unused=_names(stated, data.get("unused", [])),
        lines=lines,
    )


def _table(stated: Description, value: Any, place: KeyPath) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise stated.error(place, f"is {shortened(repr(value), 40)}; expected a table")
    return dict(value)


def _overrides(stated: Description, value: Any) -> Iterator[Override]:
    """The tables `[[layers]]`."""
    place = ("layers",)
    if not isinstance(value, list):
        raise stated.error(place, "is not a list of tables; expected [[layers]] with only = [0, 2]")
    for item in value:
        fields = _table(stated, item, place)
        only = fields.pop("only", None)
        whole = isinstance(only, list) and all(type(n) is int and 0 <= n < MOST_LAYERS for n in only)
        if not whole or not only:
            raise stated.error((*place, "only"), f"is {shortened(repr(only), 40)}; expected layers such as [0, 2]")
        yield Override(tuple(only), fields)


def _names(stated: Description, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise stated.error(("unused",), f"is {shortened(repr(value), 40)}; expected a list of tensor names")
    return tuple(value)


def _sources(stated: Description, table: Mapping[str, Any], place: KeyPath, prefix: str = "") -> Iterator[Source]:
    """The sources of a table whose keys are roles, several joined by +, or the first part of dotted roles."""
    for key, value in table.items():
        here, role = (*place, key), f"{prefix}{key}"
        if isinstance(value, dict) and "tensor" not in value:
            yield from _sources(stated, value, here, f"{role}.")
            continue
        fields = dict(value) if isinstance(value, dict) else {"tensor": value}
        source = Source(
            fields.pop("tensor"),
            tuple(part.strip() for part in role.split("+")),
            fields.pop("blocks", 1),
            fields.pop("transposed", False),
        )
        if fields:
            raise stated.error((*here, *list(fields)[:1]), "is not known; expected tensor, blocks or transposed")
        if not isinstance(source.tensor, str) or not source.tensor:
            raise stated.error(here, f"is {shortened(repr(source.tensor), 40)}; expected a tensor's name")
        if type(source.blocks) is not int or not 1 <= source.blocks < 1 << 31 or type(source.transposed) is not bool:
            raise stated.error(
                here, "has blocks or transposed of a wrong kind; expected a number above 0, and true or false"
            )
        if not all(source.roles) or len(set(source.roles)) < len(source.roles):
            raise stated.error(here, "names a role twice or none; expected roles joined by +")
        if place[:2] == ("tensors", "layer") and not has_layer(source.tensor):
            raise stated.error(here, f"names one tensor for all layers; expected {LAYER} for the layer's number")
        if place[:2] != ("tensors", "layer") and (has_layer(source.tensor) or EXPERT in source.tensor):
            raise stated.error(here, f"has {LAYER} or {EXPERT} in a name outside the layers; expected one name")
        yield source


def _lines(text: str) -> dict[KeyPath, int]:
    """The number of the line in which each key first occurs."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _HEADER.fullmatch(line), _KEY.match(line)
        if header:
            table = _keys(header["keys"])
            place = table
        elif key:
            place = (*table, *_keys(key["keys"]))
        else:
            continue
        for length in range(1, len(place) + 1):
            found.setdefault(place[:length], number)
    return found


def _keys(text: str) -> KeyPath:
    return tuple(next(part for part in match if part) for match in _ONE.findall(text) if any(match))
