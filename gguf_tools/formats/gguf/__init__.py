"""GGUF files: reading headers, shards and tensors, and writing."""
