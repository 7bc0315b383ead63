"""The torch reference: runs a `Model` from the source's own numbers, independent of targets and rewrites."""

from gguf_tools.reference.decoder import Reference

__all__ = ["Reference"]
