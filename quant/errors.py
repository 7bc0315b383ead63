"""The base classes of errors, which gguf_tools.errors re-exports.

Each message is one line that names the file, the tensor or the key, and says what was found, what was expected and what to
do.
"""

from __future__ import annotations

import re

_BREAK = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Where `str.splitlines` breaks a line."""


class TinyqError(Exception):
    """Base of all expected failures; `exit_code` is the exit status of the command line."""

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line: a path or a value in it may have line breaks, which are escaped."""
        return _BREAK.sub(lambda found: ascii(found[0])[1:-1], super().__str__())


class InputError(TinyqError):
    """A source, an option or a file is invalid or unsuitable (exit code 2)."""


class ArgumentError(InputError, TypeError):
    """An argument of a public function has a wrong type; names the argument and what it takes (exit code 2)."""


class LlamaError(TinyqError):
    """llama.cpp failed or its process died; the message has its last log lines (exit code 3)."""

    exit_code = 3
