"""Verification of a GGUF against its source: tensors byte by byte, and metadata."""
