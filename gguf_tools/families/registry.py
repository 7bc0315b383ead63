"""Every family there is, and the one that a checkpoint belongs to."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from gguf_tools.errors import InputError, TinyqError, UnsupportedError
from gguf_tools.families.base import Family
from gguf_tools.families.plugins import Plugin, load_plugins
from gguf_tools.families.saved_buffers import check_buffers
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.restore import restore

T = TypeVar("T")


@cache
def own_families() -> tuple[Family, ...]:
    """Every family of this package, by name."""
    package = importlib.import_module(__package__)
    names = (info.name for info in pkgutil.walk_packages(package.__path__, f"{__package__}."))
    modules = map(importlib.import_module, names)
    found = (getattr(module, "FAMILY", None) for module in modules)
    return tuple(sorted((family for family in found if isinstance(family, Family)), key=lambda family: family.name))


@cache
def _plugins() -> tuple[Plugin, ...]:
    return load_plugins(family.name for family in own_families())


def all_families() -> tuple[Family, ...]:
    """Every family, those of other distributions included (`gguf_tools.families.plugins`), by name."""
    families = (*own_families(), *(plugin.family for plugin in _plugins()))
    return tuple(sorted(families, key=lambda family: family.name))


def family_named(name: str) -> Family:
    """The family of this name; UnsupportedError, with those there are, otherwise."""
    for family in all_families():
        if family.name == name:
            return family
    raise UnsupportedError(f"family {name} is not known; families are {_known()}")


def recognise(checkpoint: Checkpoint) -> Family:
    """The family that the checkpoint's tensors belong to.

    Raises UnsupportedError, with the first names found, where no family knows them.
    """
    matching = [family for family in all_families() if _call(family, "matches", family.matches, checkpoint)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(family.name for family in matching)
        raise UnsupportedError(f"{checkpoint.path}: the tensors fit several families ({names}); report this checkpoint")
    first = ", ".join(sorted(checkpoint.tensors)[:4]) or "no tensors"
    raise UnsupportedError(f"{checkpoint.path}: no family has tensors like {first} …; families known are {_known()}")


def build_model(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model, restored to the published layout first, by the family that recognises it.

    Towers beside the text model are left out with a note; `restore` refuses them where they have to be asked about.
    """
    return build_published(restore(checkpoint))


def build_published(checkpoint: Checkpoint) -> Model:
    """A checkpoint in the published layout (as `restore` leaves it) as a Model, by the family that recognises it."""
    family = recognise(checkpoint)
    model = _call(family, "build", family.build, checkpoint)
    notes = check_buffers(checkpoint.path, checkpoint.buffers, model.spec)
    preferred = model.preferred_targets or family.preferred_targets
    return replace(model, preferred_targets=preferred, notes=(*model.notes, *notes))


def load_model(path: Path) -> Model:
    """Open the checkpoint at `path` and describe it as a Model; weights stay on disk until they are read."""
    return build_model(open_checkpoint(path))


def _known() -> str:
    return ", ".join(family.name for family in all_families())


def _call(family: Family, name: str, function: Callable[[Checkpoint], T], checkpoint: Checkpoint) -> T:
    """The function's result; what another distribution's function raises, save errors for the user, names that distribution."""
    owner = next((plugin.distribution for plugin in _plugins() if plugin.family is family), None)
    if owner is None:
        return function(checkpoint)
    try:
        return function(checkpoint)
    except TinyqError:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{checkpoint.path}: {name} of the family {family.name} of distribution {owner} failed ({cause}); "
            "mend or uninstall the distribution"
        ) from error
