"""Measurements against llama.cpp's own tools, in one run, on one machine; nothing here is asserted."""
