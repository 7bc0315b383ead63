"""All targets, by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.gguf.source import GGUFSource
from gguf_tools.model.spec import Model
from gguf_tools.targets.base import Target
from gguf_tools.targets.lift_checks import check_keys, check_model
from gguf_tools.text import expected


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
    known = (target.name for target in all_targets())
    raise UnsupportedError(f"target {name} is not known; {expected(name, known, 'the known targets are')}")


class NoTargetError(UnsupportedError):
    """A GGUF of an architecture that tinyq has no target for, so that it cannot be read as a Model."""

    def __init__(self, source: GGUFSource) -> None:
        """Name the file, its architecture, and what can be done with it nevertheless."""
        super().__init__(
            f"{source.path}: tinyq has no torch reference for the architecture {source.architecture}; `tinyq eval FILE --suite "
            "card` scores the file as llama.cpp runs it, and --reference FOLDER compares it with transformers' own code"
        )


def lift(source: GGUFSource) -> Model:
    """A GGUF file as a Model.

    Raises NoTargetError for an architecture without a target, CheckpointError for a file that contradicts itself, and
    UnsupportedError for what no reference computes.
    """
    target = next((target for target in all_targets() if target.name == source.architecture), None)
    if target is None:
        raise NoTargetError(source)
    try:
        check_keys(source)
        model = target.lift(source)
        check_model(source, model)
        return model
    except CheckpointError as error:
        if str(source.path) in str(error):
            raise
        raise CheckpointError(f"{source.path}: {error}; write the file again") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # Metadata and tensors contradict each other in a way that the lifters do not check.
        raise CheckpointError(
            f"{source.path}: is not a valid {target.name} model ({error}); write the file again"
        ) from error
