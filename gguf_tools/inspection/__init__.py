"""What a checkpoint or a GGUF is, from its headers."""
