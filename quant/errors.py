"""The base errors, which gguf_tools.errors hands on.

Each one is a single line that names the file, the tensor or the key, says what was found, what was expected and
what to do.
"""

from __future__ import annotations


class TinyqError(Exception):
    """Base of all expected failures; `exit_code` is what the command line returns."""

    exit_code = 2


class InputError(TinyqError):
    """A source, an option or a file is not what it has to be (exit code 2)."""


class LlamaError(TinyqError):
    """llama.cpp failed or its process died; carries the last lines that it logged (exit code 3)."""

    exit_code = 3
