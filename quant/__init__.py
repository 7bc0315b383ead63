"""Quantization: which type each tensor gets, and how its rows are encoded."""
