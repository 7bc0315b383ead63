"""The errors that tinyq raises on purpose.

Each one is a single line that names the file, the tensor or the key, says what was found, what was expected and
what to do. The command line prints it and exits with the error's code; nothing else may reach the user as a traceback.
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
    """A checkpoint is broken or is not what its own files say: names the file and the tensor or key."""


class UnsupportedError(InputError):
    """A feature that no target supports, or that the requested target does not; the message names it."""


class TokenizerError(InputError):
    """A tokenizer that llama.cpp cannot reproduce; shows the first difference."""


class OutputError(TinyqError):
    """The output exists already, or could not be written (exit code 2)."""


class ThresholdError(TinyqError):
    """Everything was measured and fell short of a threshold that the user gave (exit code 1)."""

    exit_code = 1
