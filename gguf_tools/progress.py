"""The three types of progress callback."""

from __future__ import annotations

from collections.abc import Callable

ByteProgress = Callable[[int], None]
"""Called with the number of bytes (or weights) processed since the last call."""

CountProgress = Callable[[int, int], None]
"""Called with the number done and the total."""

StageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, the number done in it, and its total."""
