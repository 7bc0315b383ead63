"""Whether a GGUF holds what its source gives: tensors byte by byte, and metadata."""
