"""Quantization of GGUF files: planning and writing."""
