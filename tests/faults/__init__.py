"""The matrix of faults × commands: what a full disk, a signal, a changing source or a wrong path does to each command.

A command joins by a line of `scenarios.py`, a fault by a class that `catalogue.py` lists. For each pair the engine runs the
command in a folder of its own, lets the fault happen, and computes from what it finds (exit code, stderr, files, processes)
whether the command survived. `tests/faults/test_*.py` run a sample; `make faults` runs all and writes `docs/faults.md`.
"""
