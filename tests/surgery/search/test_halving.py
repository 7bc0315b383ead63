"""Which candidates go on: by whole stages, by paired differences, and never by what happens to be there first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.search.agenda import Agenda, Rung, agenda
from surgery.search.halving import survivors
from surgery.search.records import Entry, Measured, Record, State

RUNGS = [Rung("cheap", share=0.5), Rung("dear")]


def record(number: int, state: State = "waiting", generation: int = 0, /, **results: list[float]) -> Record:
    found: Mapping[str, Measured] = {name: Measured(np.array(losses)) for name, losses in results.items()}
    recipe = f"delete({number})" if number else ""
    entry = Entry(recipe=recipe, key=str(number), place=number, generation=generation)
    return Record(entry=entry, number=number, trial_id=number, state=state, results=found)


def names(found: Agenda) -> list[int]:
    return [record.number for record, _ in found.open]


def test_a_candidate_that_is_clearly_worse_than_the_best_stops_and_says_why() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=20)
    losses = {n: hard + 0.01 * rng.normal(size=20) + shift for n, shift in enumerate((0.0, 0.0, 0.5))}
    found = survivors(losses, keep=2, most=3, stage="text")
    assert [found[n].goes_on for n in range(3)] == [True, True, False]
    assert "text: 0.499 worse" in found[2].reason
    assert "than place 2 (95% interval 0.489 to 0.508)" in found[2].reason


def test_what_noise_explains_goes_on_unless_too_many_are_left() -> None:
    rng = np.random.default_rng(1)
    losses = {n: rng.normal(size=10) for n in range(6)}
    assert all(verdict.goes_on for verdict in survivors(losses, keep=3, most=6, stage="text").values())
    found = survivors(losses, keep=3, most=4, stage="text")
    assert sum(verdict.goes_on for verdict in found.values()) == 4
    worst = max(losses, key=lambda n: losses[n].mean())
    assert found[worst].reason == "text: place 6 of 6, of which 4 go on"


def test_a_result_that_is_not_finite_is_last() -> None:
    losses = {0: np.array([1.0, 2.0]), 1: np.array([np.nan, 0.0])}
    assert survivors(losses, keep=1, most=2, stage="text")[1].reason == "text: the result is not finite"


def test_equal_losses_are_ordered_by_number() -> None:
    losses = {n: np.array([1.0]) for n in (5, 3, 4)}
    found = survivors(losses, keep=1, most=2, stage="text")
    assert [n for n in sorted(found) if found[n].goes_on] == [3, 4]


def test_a_stage_begins_when_the_one_before_is_whole() -> None:
    records = [record(0, cheap=[0.0]), record(1, cheap=[1.0]), record(2)]
    assert names(agenda(records, RUNGS, keep=1)) == [2]
    waiting = agenda([*records[:2], record(2, "running")], RUNGS, keep=1)
    assert waiting.waiting
    assert not waiting.open
    whole = [*records[:2], record(2, cheap=[2.0])]
    found = agenda(whole, RUNGS, keep=1)
    assert names(found) == [0, 1]
    assert [(r.number, reason) for r, reason in found.pruned] == [(2, "cheap: place 2 of 2, of which 1 go on")]


def test_the_base_is_never_pruned() -> None:
    records = [record(0, cheap=[9.0], dear=[9.0]), record(1, cheap=[0.0], dear=[0.0])]
    found = agenda(records, RUNGS, keep=1)
    assert [r.number for r in found.complete] == [0, 1]


def test_a_failed_candidate_holds_up_nobody() -> None:
    records = [record(0, cheap=[0.0], dear=[0.0]), record(1, "failed"), record(2, cheap=[1.0], dear=[1.0])]
    assert [r.number for r in agenda(records, RUNGS, keep=1).complete] == [0, 2]


def test_a_generation_is_compared_with_those_before_it() -> None:
    before = [
        record(0, "complete", cheap=[0.0], dear=[0.0]),
        *(record(n, "complete", cheap=[0.1], dear=[0.1]) for n in (1, 2)),
    ]
    after = [record(3, "waiting", 1, cheap=[0.05]), record(4, "waiting", 1, cheap=[5.0])]
    found = agenda([*before, *after], RUNGS, keep=1)
    assert found.generation == 1
    assert names(found) == [3]
    assert [r.number for r, _ in found.pruned] == [4]


@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=8), st.data())
def test_the_verdicts_do_not_depend_on_the_order_of_measuring(losses: list[list[float]], data: st.DataObject) -> None:
    """Workers finish in any order; what is pruned, and what completes, is the same."""
    outcomes = []
    for _ in range(2):
        results: dict[int, dict[str, list[float]]] = {n: {} for n in range(len(losses))}
        states: dict[int, State] = dict.fromkeys(results, "waiting")
        while True:
            records = [record(n, states[n], 0, **results[n]) for n in results]
            todo = agenda(records, RUNGS, keep=1)
            for found, _reason in todo.pruned:
                states[found.number] = "pruned"
            for found in todo.complete:
                states[found.number] = "complete"
            if not todo.open:
                break
            found, step = todo.open[data.draw(st.integers(0, len(todo.open) - 1))]
            results[found.number][RUNGS[step].name] = losses[found.number]
        outcomes.append(states)
    assert outcomes[0] == outcomes[1]
    assert set(outcomes[0].values()) <= {"complete", "pruned"}
