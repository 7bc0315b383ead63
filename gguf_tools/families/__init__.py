"""Families of checkpoints: one module each (`FAMILY`), recognised by tensor names and shapes."""

from gguf_tools.families.base import Family
from gguf_tools.families.registry import all_families, build_model, load_model, recognise

__all__ = ["Family", "all_families", "build_model", "load_model", "recognise"]
