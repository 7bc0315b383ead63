"""The torch reference: runs a `Model` with the source's weights, independent of targets and rewrites."""

from gguf_tools.reference.decoder import Reference

__all__ = ["Reference"]
