"""Targets: one module for each llama.cpp architecture (`TARGET`), their registry, and the planner that picks one."""
