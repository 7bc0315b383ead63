"""GGUF to quantized GGUF: plan, write."""
