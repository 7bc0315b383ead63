"""Fuzzing of every reader: random input ends with a result or an error of tinyq's own, within limits on time and memory.

`python -m fuzzing` runs the long campaign, guided by coverage (atheris); `tests/fuzzing` replays the corpora and a short one.
"""
