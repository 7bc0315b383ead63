"""Families of checkpoints: one module each, found by its `FAMILY`; recognised by tensor names and shapes."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from gguf_tools.checkpoint import Checkpoint, open_checkpoint
from gguf_tools.errors import UnsupportedError
from gguf_tools.families.base import Family
from gguf_tools.restore import restore
from gguf_tools.spec import Model

__all__ = ["Family", "all_families", "build_model", "load_model", "recognise"]


@cache
def all_families() -> tuple[Family, ...]:
    """Every family, by name."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
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
    published = restore(checkpoint)
    return recognise(published).build(published)


def load_model(path: Path) -> Model:
    """Open the checkpoint at `path` and describe it as a Model; weights stay on disk until they are read."""
    return build_model(open_checkpoint(path))
