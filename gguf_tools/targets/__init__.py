"""Targets: one module per llama.cpp architecture (`TARGET`), their registry, and the planner that selects one."""
