"""GGUF files: header, parts, tensors, writing."""
