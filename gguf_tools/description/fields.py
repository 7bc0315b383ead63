"""Builds the parts of a spec from tables, by the fields that their classes declare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gguf_tools.description.schema import Description, KeyPath
from gguf_tools.formats.text_file import is_finite
from gguf_tools.model.norms import Norm
from gguf_tools.text import shortened

KIND = "kind"
"""The key that names the class of a part where several are possible."""
MOST = 1 << 31

Derived = Callable[[type, str, KeyPath], Any]
"""(class, field, place) → the field's value as the tensors show it, or MISSING."""


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of a spec part's fields."""
    return get_type_hints(kind)


class Reader:
    """Reads the parts of a spec from the tables of a description.

    `derived` gives fields that no table states; a Norm takes the fields of the table `[norm]` that its own does not state.
    """

    def __init__(self, description: Description, derived: Derived) -> None:
        self.description = description
        self.derived = derived

    def part(self, kind: type, table: Mapping[str, Any], place: KeyPath, given: Mapping[str, Any] | None = None) -> Any:
        """An instance of `kind`; `given` are fields that tables cannot state. Raises InputError, naming the key."""
        values = dict(given or {})
        known = [entry.name for entry in fields(kind) if entry.name not in values]
        for key in table:
            if key not in known and key != KIND:
                raise self.description.error((*place, key), f"is not known; expected {', '.join(known)}")
        stated = {**self.description.norm, **table} if kind is Norm else table
        for entry in fields(kind):
            if entry.name in values:
                continue
            here, hint = (*place, entry.name), hints(kind)[entry.name]
            if entry.name in stated:
                values[entry.name] = self.value(hint, stated[entry.name], here)
                continue
            value = self.derived(kind, entry.name, here)
            if value is MISSING and entry.default is MISSING:
                raise self.description.error(here, f"is missing; expected {self.expected(hint)}")
            if isinstance(value, Mapping):
                value = self.value(hint, value, here)
            if value is not MISSING:
                values[entry.name] = value
        return kind(**values)

    def value(self, hint: Any, raw: Any, place: KeyPath) -> Any:
        """A field's value of type `hint`. Raises InputError, naming the key, if `raw` is not one."""
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        parts = [option for option in options if is_dataclass(option)]
        if raw is False and NoneType in options:
            return None
        if parts and isinstance(raw, Mapping):
            return self.part(self._kind(parts, raw, place), raw, place)
        if raw is True and parts and len(parts) == 1:
            return self.part(parts[0], {}, place)  # type: ignore[arg-type]
        for option in options:
            found = _scalar(option, raw)
            if found is not MISSING:
                return found
        raise self.description.error(place, f"is {shortened(repr(raw), 40)}; expected {self.expected(hint)}")

    def _kind(self, parts: list[Any], raw: Mapping[str, Any], place: KeyPath) -> type:
        """The class that a table is for."""
        named = {option.__name__: option for option in parts}
        kind = raw.get(KIND, next(iter(named)) if len(named) == 1 else None)
        if not isinstance(kind, str) or kind not in named:
            what = "missing" if kind is None else shortened(repr(kind), 40)
            raise self.description.error((*place, KIND), f"is {what}; expected {' or '.join(named)}")
        return named[kind]  # type: ignore[no-any-return]

    def expected(self, hint: Any) -> str:
        """What a value of type `hint` looks like, in words."""
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        return " or ".join(dict.fromkeys(_words(option) for option in options))


def _scalar(hint: Any, raw: Any) -> Any:
    """`raw` as a value of a type that is no part, or MISSING if it is not one."""
    if get_origin(hint) is Literal:
        return raw if isinstance(raw, str) and raw in get_args(hint) else MISSING
    if get_origin(hint) is frozenset:
        whole = isinstance(raw, list) and all(isinstance(item, str) for item in raw)
        return frozenset(raw) if whole else MISSING
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint), raw)
    if hint is bool or hint is str:
        return raw if isinstance(raw, hint) else MISSING
    if isinstance(raw, bool):
        return MISSING
    if hint is int:
        return raw if isinstance(raw, int) and 0 <= raw < MOST else MISSING
    if hint is float:
        return float(raw) if is_finite(raw) and abs(raw) < 1e38 else MISSING
    return MISSING


def _tuple(kinds: tuple[Any, ...], raw: Any) -> Any:
    """A list as a tuple whose items have these types (the first for all, if an ellipsis follows), or MISSING."""
    if not isinstance(raw, list):
        return MISSING
    each = kinds[:1] * len(raw) if kinds[-1] is Ellipsis else kinds
    items = [_scalar(kind, item) for kind, item in zip(each, raw, strict=False)]
    whole = len(each) == len(raw) and not any(item is MISSING for item in items)
    return tuple(items) if whole else MISSING


def _words(hint: Any) -> str:
    """One type in words."""
    if get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in get_args(hint))
    if is_dataclass(hint):
        return f"a table ({hint.__name__})"  # type: ignore[union-attr]
    if get_origin(hint) in (frozenset, tuple):
        return "a list"
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "false"}
    return simple.get(hint, str(hint))
