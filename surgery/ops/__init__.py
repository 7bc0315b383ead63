"""The ops: subclasses of `Op`, found in all modules of this package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from gguf_tools.errors import InputError
from gguf_tools.text import expected
from surgery.ops.base import Arguments, Op

__all__ = ["Arguments", "Op", "all_ops", "op_named", "parse_op"]


@cache
def all_ops() -> dict[str, type[Op]]:
    """All ops by name, in alphabetical order."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = {
        value.name: value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Op) and not inspect.isabstract(value)
    }
    return dict(sorted(found.items()))


def op_named(name: str) -> type[Op]:
    """The op named `name`; otherwise InputError, which lists the known names."""
    found = all_ops().get(name)
    if found is None:
        raise InputError(f"op {name!r} is not known; {expected(name, all_ops(), 'the ops are')}")
    return found


def parse_op(name: str, text: str) -> Op:
    """The op that an option (its value as `text`), or a step of a recipe, describes."""
    op = op_named(name)
    return op.parse(Arguments.read(op, text))
