"""The three types of progress callback, and the stream on which progress is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable

from gguf_tools.machine import drop

ByteProgress = Callable[[int], None]
"""Called with the number of bytes (or weights) processed since the last call."""

CountProgress = Callable[[int, int], None]
"""Called with the number done and the total."""

StageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, the number done in it, and its total."""


class ProgressStream:
    """stderr, for showing progress: where the terminal has gone, nothing more is shown, and the work goes on."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Write the text, or drop it and all that follows."""
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            drop(sys.stderr.fileno())
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""

    def isatty(self) -> bool:
        """Whether stderr is a terminal."""
        return sys.stderr.isatty()
