"""The architectures by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from surgery.architectures.base import Architecture
from surgery.architectures.rows import closed, dense, experts, hybrid
from surgery.architectures.tensors import ROLES

GPTJ = Architecture(name="gptj", source="", tensors={}, closed="llama.cpp has its name, and no graph that runs it")


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every architecture of llama.cpp, in alphabetical order."""
    rows = (*dense.ROWS, *experts.ROWS, *hybrid.ROWS, *closed.ROWS, GPTJ)
    return MappingProxyType({row.name: row for row in sorted(rows, key=lambda row: row.name)})


def assumed(name: str) -> Architecture:
    """A description of an architecture that is not known, whose layers the user says are independent of their place.

    Tensors have the role that their name has elsewhere.
    """
    return Architecture(name=name, source="", tensors=ROLES)
