"""All targets, by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Model
from gguf_tools.targets.base import Target


@cache
def all_targets() -> tuple[Target, ...]:
    """All targets, sorted by name."""
    package = importlib.import_module(__package__)
    names = (info.name for info in pkgutil.walk_packages(package.__path__, f"{__package__}."))
    modules = map(importlib.import_module, names)
    found = (getattr(module, "TARGET", None) for module in modules)
    return tuple(sorted((target for target in found if isinstance(target, Target)), key=lambda target: target.name))


def target_named(name: str) -> Target:
    """The target of this name. Raises UnsupportedError, listing the known names, if there is none."""
    for target in all_targets():
        if target.name == name:
            return target
    known = ", ".join(target.name for target in all_targets())
    raise UnsupportedError(f"target {name} is not known; the known targets are {known}")


def lift(source: GGUFSource) -> Model:
    """A GGUF file as a Model. Raises UnsupportedError for an architecture without a target."""
    target = target_named(source.architecture)
    try:
        return target.lift(source)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Metadata and tensors contradict each other in a way that the lifters do not check.
        raise CheckpointError(
            f"{source.path}: is not a valid {target.name} model ({error}); write the file again"
        ) from error
