"""Quantization: selection of a type for each tensor, and encoding of rows with ggml."""
