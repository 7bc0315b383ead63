"""Bytes in files: safetensors, state dicts, GGUF, and outputs that appear whole or not at all."""
