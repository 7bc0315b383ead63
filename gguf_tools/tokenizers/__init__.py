"""Converts a checkpoint's tokenizer to the vocabulary of a GGUF."""
