"""What is to be done next in a study: a pure function of its records.

A generation passes one stage after the other. When all its candidates have the result of a stage, those that cannot be among the
best are pruned, and only then does the next stage begin; so the same candidates are pruned whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from surgery.search.halving import survivors
from surgery.search.records import Record


@dataclass(frozen=True)
class Rung:
    """A stage's name, the share of the candidates measured in it that go on at most, and `slack`.

    An interval lets pass what may still be among the best `keep` × `slack`: a cheap measure says what is bad, but little about
    which of the good ones is best.
    """

    name: str
    share: float = 1.0
    slack: int = 1


@dataclass(frozen=True)
class Agenda:
    """`generation` is the one in work. `open` are the candidates to measure and the place of the stage; `pruned` and `complete`
    are to be ended. If all are empty, the generation is finished, or other workers are measuring (`waiting`)."""

    generation: int
    open: tuple[tuple[Record, int], ...]
    pruned: tuple[tuple[Record, str], ...]
    complete: tuple[Record, ...]
    waiting: bool


def agenda(records: Sequence[Record], rungs: Sequence[Rung], keep: int) -> Agenda:
    """The work that the records leave, of the first generation that has any; the best `keep` are never pruned by an interval."""
    last = max((record.entry.generation for record in records), default=0)
    pruned: list[tuple[Record, str]] = []
    for generation in range(last + 1):
        going = [r for r in records if r.entry.generation == generation and r.state != "failed"]
        earlier = [r for r in records if r.entry.generation < generation and not r.entry.always]
        for step, rung in enumerate(rungs):
            going = [r for r in going if rung.name in r.results or not r.finished]
            lacking = [r for r in going if rung.name not in r.results]
            if lacking:
                waiting = [(r, step) for r in lacking if r.state == "waiting"]
                return Agenda(generation, tuple(waiting), tuple(pruned), (), waiting=not waiting)
            stopped = _stopped(going, earlier, rung, keep)
            pruned += [(r, stopped[r.entry.place]) for r in going if r.entry.place in stopped and not r.finished]
            going = [r for r in going if r.entry.place not in stopped]
        complete = tuple(r for r in going if not r.finished)
        if complete or pruned:
            return Agenda(generation, (), tuple(pruned), complete, waiting=False)
    return Agenda(last, (), (), (), waiting=False)


def _stopped(going: Sequence[Record], earlier: Sequence[Record], rung: Rung, keep: int) -> dict[int, str]:
    """The places of the candidates that do not go on after a stage, with the reason."""
    new = [r for r in going if not r.entry.always]
    known = {r.entry.place: r.results[rung.name].losses for r in earlier if rung.name in r.results}
    losses = known | {r.entry.place: r.results[rung.name].losses for r in new}
    pass_on = keep * rung.slack
    most = max(keep, ceil(rung.share * len(losses)))
    verdicts = survivors(losses, keep=pass_on, most=most, stage=rung.name)
    return {r.entry.place: verdicts[r.entry.place].reason for r in new if not verdicts[r.entry.place].goes_on}
