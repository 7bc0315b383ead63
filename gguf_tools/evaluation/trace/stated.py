"""Faults in a file's metadata: each value that the file states otherwise than the source, put into the source's form alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")
WEIGHTLESS = frozenset({"rope", "scaling", "clamped"})
"""Parts of a spec that no weights go with."""
MEANT = {"scale": "score_scale", "value_dim": "value_size", "attention_factor": "magnitude"}
"""Fields with a default that depends on others → the properties that say what is meant."""


def stated_otherwise(spec: T, own: object, within: str = "") -> Iterator[tuple[str, T]]:
    """(what differs in words, `spec` with that one value of `own`) for every number or choice in which the two differ.

    Parts that both have are compared value by value. Parts of different kinds are left out, if other weights go with them.
    """
    assert is_dataclass(spec)
    for field in fields(spec):
        mine, theirs = getattr(spec, field.name), getattr(own, field.name, None)
        name = f"{within}.{field.name}" if within else field.name
        if is_dataclass(mine) and type(mine) is type(theirs):
            for text, changed in stated_otherwise(mine, theirs, name):
                yield text, _with(spec, field.name, changed)
        elif field.name in WEIGHTLESS and type(mine) is not type(theirs):
            text = f"{name} is {_kind(theirs)} in the file, not {_kind(mine)}"
            yield text, _with(spec, field.name, theirs)
        elif _meant(spec, field.name) is not None and _same(_meant(spec, field.name), _meant(own, field.name)):
            continue
        elif _plain(mine) and _plain(theirs) and not _same(mine, theirs):
            yield f"{name} is {_said(theirs)} in the file, not {_said(mine)}", _with(spec, field.name, theirs)
        elif _numbers(mine) and _numbers(theirs) and not _alike(mine, theirs):
            yield _listed(name, mine, theirs), _with(spec, field.name, theirs)


def _with(spec: T, name: str, value: object) -> T:
    changes: dict[str, Any] = {name: value}
    made: T = replace(spec, **changes)  # type: ignore[type-var]
    return made


def _meant(spec: object, name: str) -> object:
    return getattr(spec, MEANT[name], None) if name in MEANT else None


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _same(one: object, other: object) -> bool:
    """Equal, or equal as float32, which metadata are stored in."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return abs(one - other) <= 1e-6 * abs(one)
    return one == other


def _numbers(value: object) -> TypeGuard[tuple[float, ...]]:
    return isinstance(value, tuple) and all(isinstance(item, (int, float)) for item in value)


def _alike(mine: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    return len(mine) == len(theirs) and all(map(_same, mine, theirs))


def _listed(name: str, mine: tuple[float, ...], theirs: tuple[float, ...]) -> str:
    """The first number that differs, and how many do."""
    if len(mine) != len(theirs):
        return f"{name} has {len(theirs)} numbers in the file, not {len(mine)}"
    differing = [n for n, (one, other) in enumerate(zip(mine, theirs, strict=True)) if not _same(one, other)]
    at = differing[0]
    more = f"; {len(differing)} of {len(mine)} differ" if len(differing) > 1 else ""
    return f"{name}[{at}] is {_said(theirs[at])} in the file, not {_said(mine[at])}{more}"


def _kind(value: object) -> str:
    return "left out" if value is None else type(value).__name__


def _said(value: object) -> str:
    return "left out" if value is None else f"{value:.7g}" if isinstance(value, float) else str(value)
