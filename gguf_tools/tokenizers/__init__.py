"""A checkpoint's tokenizer as the vocabulary of a GGUF."""
