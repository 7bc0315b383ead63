"""Every family there is, and the one that a checkpoint belongs to."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from gguf_tools.errors import UnsupportedError
from gguf_tools.families.base import Family
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.sources.restore import restore


@cache
def all_families() -> tuple[Family, ...]:
    """Every family, by name."""
    package = importlib.import_module(__package__)
    names = (info.name for info in pkgutil.walk_packages(package.__path__, f"{__package__}."))
    modules = map(importlib.import_module, names)
    found = (getattr(module, "FAMILY", None) for module in modules)
    return tuple(sorted((family for family in found if isinstance(family, Family)), key=lambda family: family.name))


def recognise(checkpoint: Checkpoint) -> Family:
    """The family that the checkpoint's tensors belong to.

    Raises UnsupportedError, with the first names found, where no family knows them.
    """
    matching = [family for family in all_families() if family.matches(checkpoint)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(family.name for family in matching)
        raise UnsupportedError(f"{checkpoint.path}: the tensors fit several families ({names}); report this checkpoint")
    known = ", ".join(family.name for family in all_families())
    first = ", ".join(sorted(checkpoint.tensors)[:4]) or "no tensors"
    raise UnsupportedError(f"{checkpoint.path}: no family has tensors like {first} …; families known are {known}")


def build_model(checkpoint: Checkpoint) -> Model:
    """The checkpoint as a Model, restored to the published layout first, by the family that recognises it.

    Towers beside the text model are left out with a note; `restore` refuses them where they have to be asked about.
    """
    return build_published(restore(checkpoint))


def build_published(checkpoint: Checkpoint) -> Model:
    """A checkpoint in the published layout (as `restore` leaves it) as a Model, by the family that recognises it."""
    return recognise(checkpoint).build(checkpoint)


def load_model(path: Path) -> Model:
    """Open the checkpoint at `path` and describe it as a Model; weights stay on disk until they are read."""
    return build_model(open_checkpoint(path))
