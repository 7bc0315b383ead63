"""Adapters: LoRA in PEFT's format, merged into a checkpoint."""
