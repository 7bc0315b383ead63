"""What a person sees while a search runs: the stage, the rate, the time left, and the best candidates so far."""

from __future__ import annotations

import shutil
import time
from types import TracebackType
from typing import TYPE_CHECKING

from gguf_tools.progress import ProgressStream
from gguf_tools.text import cut_middle, printable

if TYPE_CHECKING:
    from surgery.search.worker import Standing

SHOWN = 5
"""Candidates that are shown."""
PAUSE = 0.5
"""Seconds between two drawings, at least."""


class Live:
    """Draws where a search stands on stderr, over what it drew before; nothing if `quiet` or stderr is no terminal."""

    def __init__(self, quiet: bool) -> None:
        self._stream = ProgressStream()
        self._on = not quiet and self._stream.isatty()
        self._lines = 0
        self._drawn = 0.0
        self._stage = ""
        self._began = 0.0
        self._first = 0

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def __call__(self, standing: Standing) -> None:
        """Draw, unless that was done a moment ago."""
        now = time.monotonic()
        if standing.stage != self._stage:
            self._stage, self._began, self._first = standing.stage, now, standing.done
        elif now - self._drawn < PAUSE:
            return
        if not self._on:
            return
        self._drawn = now
        lines = [self._status(standing, now), *best_lines(standing)]
        width = shutil.get_terminal_size().columns - 1
        self._clear()
        self._stream.write("".join(cut_middle(printable(line), width) + "\n" for line in lines))
        self._lines = len(lines)

    def _status(self, standing: Standing, now: float) -> str:
        """The stage, how far it is, the rate, and the time that it still takes."""
        done, took = standing.done - self._first, now - self._began
        text = f"{standing.stage}: {standing.done} of {standing.total}"
        if done < 1 or took <= 0:
            return text
        left = (standing.total - standing.done) * took / done
        return f"{text}, {60 * done / took:.0f} a minute, {_duration(left)} left in this stage"

    def _clear(self) -> None:
        """Remove what was drawn."""
        if self._lines:
            self._stream.write(f"\033[{self._lines}F\033[J")
            self._lines = 0


def best_lines(standing: Standing) -> list[str]:
    """The best candidates so far by the first objective, one line each, the base among them."""
    objective = standing.objectives[0]
    measured = [record for record in standing.records if objective.stage in record.results]
    measured.sort(key=lambda record: (objective.loss(record), record.entry.place))
    return [f"  {objective.value(record):10.4f}  {record.entry.name}" for record in measured[:SHOWN]]


def _duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
