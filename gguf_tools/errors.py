"""The exceptions that tinyq raises for expected failures.

A message is a single line that names the file, tensor or key, what was found, what was expected, and what to do. The command
line prints it and exits with the exception's `exit_code`. Any other exception that reaches the user is a bug.
"""

from __future__ import annotations

from quant.errors import InputError, LlamaError, TinyqError

__all__ = [
    "CheckpointError",
    "InputError",
    "LlamaError",
    "OutputError",
    "ThresholdError",
    "TinyqError",
    "TokenizerError",
    "UnsupportedError",
]


class CheckpointError(InputError):
    """A checkpoint is broken, or its files contradict each other; names the file and the tensor or key (exit code 2)."""


class UnsupportedError(InputError):
    """A feature that no target, or not the requested one, supports; the message names it (exit code 2)."""


class TokenizerError(InputError):
    """A tokenizer that llama.cpp cannot reproduce; shows the first difference (exit code 2)."""


class OutputError(TinyqError):
    """The output already exists, or could not be written (exit code 2)."""


class ThresholdError(TinyqError):
    """A measured value misses a threshold given by the user, or a check found a difference (exit code 1)."""

    exit_code = 1
