"""Every target: what the modules of `fuzzing.targets` list as TARGETS."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from fuzzing import targets
from fuzzing.target import Target


@cache
def all_targets() -> tuple[Target, ...]:
    """All targets by name."""
    names = [f"{targets.__name__}.{info.name}" for info in pkgutil.iter_modules(targets.__path__)]
    found: list[Target] = [target for name in names for target in importlib.import_module(name).TARGETS]
    return tuple(sorted(found, key=lambda target: target.name))


def target_named(name: str) -> Target:
    """The target of this name; SystemExit, with those there are, otherwise."""
    found = next((target for target in all_targets() if target.name == name), None)
    if found is None:
        raise SystemExit(f"there is no target {name!r}; there are {', '.join(target.name for target in all_targets())}")
    return found
