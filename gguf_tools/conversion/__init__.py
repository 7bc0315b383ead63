"""Checkpoint to GGUF: request, plan, write."""
