"""Checkpoint families: one module each (its `FAMILY`), recognised by tensor names and shapes."""

from gguf_tools.families.base import Expected, Family
from gguf_tools.families.registry import all_families, build_model, family_named, load_model, recognise

__all__ = ["Expected", "Family", "all_families", "build_model", "family_named", "load_model", "recognise"]
