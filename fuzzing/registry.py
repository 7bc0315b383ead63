"""Every target: what the modules of `fuzzing.targets` list as TARGETS."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from fuzzing import targets
from fuzzing.target import Target


@cache
def _by_module() -> dict[str, tuple[Target, ...]]:
    names = (f"{targets.__name__}.{info.name}" for info in pkgutil.iter_modules(targets.__path__))
    return {name: importlib.import_module(name).TARGETS for name in names}


def all_targets() -> tuple[Target, ...]:
    """All targets by name."""
    found = [target for listed in _by_module().values() for target in listed]
    return tuple(sorted(found, key=lambda target: target.name))


def module_of(target: Target) -> str:
    """The module that lists the target."""
    return next(name for name, listed in _by_module().items() if target in listed)


def target_named(name: str) -> Target:
    """The target of this name; SystemExit, with those there are, otherwise."""
    found = next((target for target in all_targets() if target.name == name), None)
    if found is None:
        raise SystemExit(f"there is no target {name!r}; there are {', '.join(target.name for target in all_targets())}")
    return found
