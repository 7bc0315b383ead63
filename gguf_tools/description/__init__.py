"""Descriptions: TOML files that say what a checkpoint's tensors are, for decoders that no family knows."""
