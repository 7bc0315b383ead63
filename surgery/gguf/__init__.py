"""Surgery on a GGUF file."""
