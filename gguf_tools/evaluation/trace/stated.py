"""Faults in a file's metadata: each value that the file states otherwise than the source, put into the source's form alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")
FORMS = frozenset({"decay", "offset", "multipliers", "pairs"})
"""Fields that say how weights are stored: they differ between source and file without any fault."""


def stated_otherwise(spec: T, own: object, within: str = "") -> Iterator[tuple[str, T]]:
    """(what differs in words, `spec` with that one value of `own`) for every number or choice in which the two differ.

    Parts that both have are compared value by value; parts of different kinds are left out, as other weights go with them.
    """
    assert is_dataclass(spec)
    for field in fields(spec):
        if field.name in FORMS:
            continue
        mine, theirs = getattr(spec, field.name), getattr(own, field.name, None)
        name = f"{within}.{field.name}" if within else field.name
        if is_dataclass(mine) and type(mine) is type(theirs):
            for text, changed in stated_otherwise(mine, theirs, name):
                yield text, _with(spec, field.name, changed)
        elif _plain(mine) and _plain(theirs) and not _same(mine, theirs):
            yield f"{name} is {_said(theirs)} in the file, not {_said(mine)}", _with(spec, field.name, theirs)


def _with(spec: T, name: str, value: object) -> T:
    changes: dict[str, Any] = {name: value}
    made: T = replace(spec, **changes)  # type: ignore[type-var]
    return made


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _same(one: object, other: object) -> bool:
    """Equal, or equal as float32, which metadata are stored in."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return abs(one - other) <= 1e-6 * abs(one)
    return one == other


def _said(value: object) -> str:
    return "left out" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
