"""The base classes of errors, which gguf_tools.errors re-exports.

Each message is one line that names the file, the tensor or the key, and says what was found, what was expected and what to
do.
"""

from __future__ import annotations


class TinyqError(Exception):
    """Base of all expected failures; `exit_code` is the exit status of the command line."""

    exit_code = 2


class InputError(TinyqError):
    """A source, an option or a file is invalid or unsuitable (exit code 2)."""


class LlamaError(TinyqError):
    """llama.cpp failed or its process died; the message has its last log lines (exit code 3)."""

    exit_code = 3
