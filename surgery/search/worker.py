"""The loop of a worker: lease a candidate, measure its next stage, keep the result, until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gguf_tools.errors import InputError, LlamaError
from surgery.search.agenda import agenda
from surgery.search.ledger import Ledger
from surgery.search.objective import Objective, Stage
from surgery.search.records import Record

PAUSE = 0.25
"""Seconds between two looks at the study while other workers measure."""


@dataclass(frozen=True)
class Standing:
    """Where a search stands: all records, the stage in work, and how many candidates are measured in it, of how many."""

    records: Sequence[Record]
    objectives: Sequence[Objective]
    stage: str
    done: int
    total: int


Watch = Callable[[Standing], None]
Grow = Callable[[Ledger, Sequence[Record]], bool]
"""Called with the study's records, each finished: adds the next generation; whether there is one."""


def work(
    ledger: Ledger, stages: Sequence[Stage], objectives: Sequence[Objective], grow: Grow, keep: int, watch: Watch
) -> None:
    """Measure candidates until all are finished and `grow` adds none.

    A candidate on which llama.cpp fails is recorded as failed, with the last lines that it said. InputError or LlamaError where
    the base itself cannot be measured, without which nothing can be compared.
    """
    rungs = [stage.rung for stage in stages]
    while True:
        ledger.give_back_stale()
        records = ledger.begun()
        todo = agenda(records, rungs, keep)
        for record, reason in todo.pruned:
            ledger.finish(record, "pruned", reason)
        for record in todo.complete:
            ledger.finish(record, "complete", values=[objective.value(record) for objective in objectives])
        if todo.open:
            _measure(ledger, todo.open, stages, objectives, records, watch)
        elif todo.waiting:
            time.sleep(PAUSE)
        elif not (todo.pruned or todo.complete) and not grow(ledger, records):
            return


def _measure(
    ledger: Ledger,
    todo: Sequence[tuple[Record, int]],
    stages: Sequence[Stage],
    objectives: Sequence[Objective],
    records: Sequence[Record],
    watch: Watch,
) -> None:
    """Measure the open candidates of one stage, those left out that another worker has leased or measured meanwhile."""
    step = todo[0][1]
    stage = stages[step]
    total = sum(stage.rung.name in record.results or not record.finished for record in records)
    done = sum(stage.rung.name in record.results for record in records)
    for record, _ in todo:
        watch(Standing(records, objectives, stage.rung.name, done, total))
        lease = ledger.lease(record, without=stage.rung.name)
        if lease is not None:
            with lease.held():
                try:
                    lease.done(stage.rung.name, step, stage.measure(record.entry))
                except (LlamaError, InputError) as error:
                    if not record.entry.recipe:
                        raise
                    lease.failed(str(error))
        done += 1
    watch(Standing(records, objectives, stage.rung.name, done, total))
