"""Measuring a GGUF: llama.cpp in a process of its own, metrics on logits, and the suites made of them."""
