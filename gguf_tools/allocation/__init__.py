"""Selects tensor types for a target size, by measuring each tensor's sensitivity."""
