"""Every rewrite is known by the name that files record."""

from __future__ import annotations

import importlib
from pathlib import Path

from gguf_tools import rewrites
from gguf_tools.rewrites.base import Rewrite
from gguf_tools.rewrites.norms import CENTRED_STREAM
from gguf_tools.rewrites.registry import blend_passes, rewrites_by_name


def test_the_rewrites_of_every_module_are_found() -> None:
    folder = Path(rewrites.__path__[0])
    modules = [importlib.import_module(f"{rewrites.__name__}.{file.stem}") for file in folder.glob("[!_]*.py")]
    stated = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Rewrite)}
    rewrites_by_name.cache_clear()
    found = rewrites_by_name()
    assert {id(one) for same in found.values() for one in same} == stated.keys()
    assert all(one.name == name for name, same in found.items() for one in same)
    assert len(stated) > 30


def test_without_angles_a_linear_rewrite_is_enough() -> None:
    assert CENTRED_STREAM.linear
    assert not CENTRED_STREAM.keeps_row_angles
    assert blend_passes(CENTRED_STREAM.name)
    assert not blend_passes(CENTRED_STREAM.name, angles=True)
