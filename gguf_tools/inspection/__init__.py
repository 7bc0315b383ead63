"""Describes a checkpoint or a GGUF file from its headers."""
