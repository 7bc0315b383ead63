"""Evaluation of a GGUF run by llama.cpp: metrics on logits, the fidelity suite and the card suite."""
