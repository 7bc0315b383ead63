"""Layer surgery on a GGUF file."""
