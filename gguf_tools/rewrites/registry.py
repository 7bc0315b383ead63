"""All rewrites, by the name recorded in GGUF files."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Mapping
from functools import cache

from gguf_tools.rewrites.base import Rewrite


@cache
def rewrites_by_name() -> Mapping[str, tuple[Rewrite, ...]]:
    """All rewrites by name; variants of one rewrite share a name."""
    package = importlib.import_module(__package__)
    found: dict[str, list[Rewrite]] = defaultdict(list)
    for info in pkgutil.iter_modules(package.__path__, f"{__package__}."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Rewrite):
                found[value.name].append(value)
    return {name: tuple(rewrites) for name, rewrites in found.items()}


def blend_passes(name: str, *, angles: bool = False) -> bool:
    """Whether layers can be blended after the rewrite that a file records as `name`.

    With `angles` the blend is spherical and depends on the angles between rows. The result is False for an unknown name,
    which a later version of tinyq may have recorded.
    """
    known = rewrites_by_name().get(name, ())
    return bool(known) and all(rewrite.linear and (rewrite.keeps_row_angles or not angles) for rewrite in known)
