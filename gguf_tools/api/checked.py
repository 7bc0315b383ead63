"""What every public function does with its arguments and with errors of the operating system.

Python does not check types at run time, and many wrong ones would do something: a `force="no"` is true, a list of bytes is
iterated over as numbers. So each argument is held to the function's own annotation before any work.
"""

from __future__ import annotations

import functools
import inspect
import os
import reprlib
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gguf_tools.errors import ArgumentError, InputError, advice, exhausted
from gguf_tools.formats.temporary import MAX_NAME

P = ParamSpec("P")
R = TypeVar("R")
MAX_PATH = 4095
"""Most bytes of a path on Linux (PATH_MAX)."""
TEXTS = ("recipe", "surgery")
"""Parameters whose text need not be a path."""
EMPTY = ("question", "system")
"""Parameters whose text may be empty: it says something else than None, or is refused with what it should be."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A public function that raises ArgumentError for an argument that does not have the type of its annotation, InputError for
    a path that no file can have, and InputError in place of an OSError that names a file."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        """The function, after its arguments were looked at."""
        bound = signature.bind(*args, **kwargs)
        _check(function, bound)
        try:
            return function(*bound.args, **bound.kwargs)
        except BrokenPipeError:
            raise
        except OSError as error:
            if not error.filename:
                raise
            what, to_do = exhausted(error) or (error.strerror or str(error), advice(error))
            raise InputError(f"{error.filename!s}: {what}; {to_do}") from error

    return call


def _check(function: Callable[..., Any], bound: inspect.BoundArguments) -> None:
    """Hold the arguments of a call to the function's annotations; an iterator is replaced by the values that it gives."""
    hints = _hints(function)
    for name, value in bound.arguments.items():
        hint = hints[name]
        if isinstance(value, Iterator) and _accepts(hint, ()):
            value = bound.arguments[name] = tuple(value)
        if not _accepts(hint, value):
            found = f"{reprlib.repr(value)} ({type(value).__name__})"
            raise ArgumentError(f"{function.__name__}: {name} is {found}; expected {_shown(hint)}")
        if isinstance(value, str) and not value and name not in (*EMPTY, *TEXTS):
            raise InputError(f"{function.__name__}: {name} is empty; give a value, or leave it out")
        if _names_files(hint) and not (name in TEXTS and isinstance(value, str)):
            _check_paths(name, value)


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters."""
    return typing.get_type_hints(function)


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a value has the type of an annotation; a bool is no int, and text is no collection of texts."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(one, value) for one in inner)
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _accepts(inner[0], key) and _accepts(inner[1], item) for key, item in value.items()
        )
    if isinstance(origin, type) and issubclass(origin, Iterable):
        listed = isinstance(value, origin) and isinstance(value, Collection)
        return (
            listed and not isinstance(value, str | bytes | Mapping) and all(_accepts(inner[0], item) for item in value)
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _names_files(hint: Any) -> bool:
    """Whether an annotation has paths in it."""
    return hint is Path or any(map(_names_files, typing.get_args(hint)))


def _shown(hint: Any) -> str:
    """An annotation for an error message: `str, Path or None`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        names = list(dict.fromkeys(map(_shown, inner)))
        return f"{', '.join(names[:-1])} or {names[-1]}"
    if origin is Callable:
        return "a function"
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(_shown, inner))}]"
    return "None" if hint in (None, type(None)) else getattr(hint, "__name__", str(hint))


def _check_paths(name: str, value: Any) -> None:
    """Raise InputError for a path, or one among several, that no file can have."""
    if isinstance(value, Mapping):
        value = value.values()
    for one in value if isinstance(value, Collection) and not isinstance(value, str) else (value,):
        if not isinstance(one, str | Path):
            continue
        text = str(one)
        shown = reprlib.repr(text)
        if "\0" in text:
            raise InputError(f"{name} is {shown}: a path has no NUL characters; remove them")
        try:
            raw = os.fsencode(text)
        except UnicodeEncodeError as error:
            raise InputError(f"{name} is {shown}: a path has no lone surrogates; remove them") from error
        if len(raw) > MAX_PATH or any(len(part) > MAX_NAME for part in raw.split(b"/")):
            raise InputError(
                f"{name} is {shown}: is longer than file systems allow ({MAX_PATH} bytes, {MAX_NAME} of a name); give a "
                "shorter path"
            )
