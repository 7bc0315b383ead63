"""Several workers on one study: generations appear whole, whoever adds them, and however far another worker came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_tools.errors import InputError
from surgery.search.agenda import Rung
from surgery.search.leaderboard import read_board
from surgery.search.ledger import Ledger
from surgery.search.objective import Objective, Stage
from surgery.search.records import STAGES, Entry, Measured, Record
from surgery.search.storage import storage_url
from surgery.search.worker import work

pytest.importorskip("optuna")

ENTRIES = [Entry(recipe="", key="base", place=0)]
ENTRIES += [Entry(recipe=f"swap({n}:{n + 1})", key=f"k{n}", place=n + 1) for n in range(8)]
OBJECTIVE = Objective("dear", "dear", "value", "minimize")


def cheap(entry: Entry) -> Mapping[str, Measured]:
    """Known without measuring; the candidates that are added last are the best."""
    return {"cheap": Measured(np.array([float(-entry.place)]))}


def measure(entry: Entry) -> Measured:
    return Measured(np.array([float(entry.place)]), {"value": float(entry.place)})


def run(ledger: Ledger, entries: Sequence[Entry] = ENTRIES) -> dict[str, str]:
    """Work as one worker until nothing is left; the state of each candidate."""

    def grow(study: Ledger, records: Sequence[Record]) -> bool:
        if not records:
            study.add(entries, cheap)
        return not records

    stages = [Stage(Rung("cheap", 0.5), measure), Stage(Rung("dear"), measure)]
    work(ledger, stages, [OBJECTIVE], grow, 1, lambda _: None)
    return {record.entry.key: record.state for record in ledger.records()}


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Ledger]:
    return lambda name: Ledger.create(storage_url(str(tmp_path / name)), "study", {}, ["minimize"], "")


def test_a_study_of_another_file_names_the_file(tmp_path: Path) -> None:
    url = storage_url(str(tmp_path / "study.db"))
    Ledger.create(url, "study", {"source": "a"}, ["minimize"], "/some/model.gguf")
    with pytest.raises(InputError, match=r"was begun with another file than /some/model\.gguf is now; give that"):
        Ledger.create(url, "study", {"source": "b"}, ["minimize"], "/some/model.gguf")


def test_a_storage_with_options_after_its_path(tmp_path: Path) -> None:
    url = storage_url(str(tmp_path / "study.db")) + "?cached_statements=64"
    Ledger.create(url, "study", {"source": "a"}, ["minimize"], "")
    assert Ledger.open(url, None).name == "study"
    (tmp_path / "study.db").unlink()
    with pytest.raises(InputError, match=r"study\.db: there is no such study"):
        Ledger.open(url, None)


@pytest.mark.parametrize("added", [1, 4, 8, 9])
def test_half_a_generation_is_completed_before_it_is_measured(made: Callable[[str], Ledger], added: int) -> None:
    """Another worker was adding the candidates when this one came, or died in the middle."""
    ledger = made("half.db")
    for entry in ENTRIES[:added]:
        ledger._insert(entry, cheap)
    assert ledger.begun() == []
    found = run(ledger)
    assert found == run(made("whole.db"))
    assert sorted(found.values()) == ["complete"] * 5 + ["pruned"] * 4


def test_candidates_that_a_worker_adds_after_all_others_have_begun_are_not_measured(
    made: Callable[[str], Ledger],
) -> None:
    """Those of a generation are what was said first, so that no worker compares with others than the rest."""
    ledger = made("study.db")
    ledger.add(ENTRIES, cheap)
    ledger.add([*ENTRIES, Entry(recipe="swap(0:5)", key="late", place=9)], cheap)
    assert {record.entry.key for record in ledger.begun()} == {entry.key for entry in ENTRIES}


def test_a_sampled_generation_is_the_same_for_a_worker_that_comes_late(made: Callable[[str], Ledger]) -> None:
    """Whatever of it is there, and finished, by then."""
    ledger = made("study.db")
    run(ledger)

    def draw(trial: Any) -> Entry:
        number = trial.suggest_int("number", 0, 1000)
        return Entry(recipe=f"swap(0:{number})", key=f"drawn {number}", place=10, generation=1)

    before = ledger.begun()
    count = ledger.sample(before, draw, 5, seed=3, known_results=cheap)
    keys = [record.entry.key for record in ledger.records()]
    for record in ledger.begun():
        ledger.finish(record, "complete", values=[0.0])
    assert ledger.sample(before, draw, 5, seed=3, known_results=cheap) == count == 5
    assert [record.entry.key for record in ledger.records()] == keys


@pytest.mark.parametrize(
    "broken",
    [
        {"objectives": []},
        {"objectives": [1]},
        {"layer_count": "8"},
        {"questions": [1]},
        {"set": None},
    ],
)
def test_a_study_that_another_program_began_is_refused(made: Callable[[str], Ledger], broken: dict[str, Any]) -> None:
    ledger = made("study.db")
    good = {
        "layer_count": 8, "source": "", "objectives": ["kl"], "strategies": [], "set": "", "questions": [1, 1],
        "passages": [1, 1],
    }  # fmt: skip
    ledger.study.set_user_attr("setup", good)
    assert ledger.setup == good
    assert not read_board(ledger).best
    ledger.study.set_user_attr("setup", {**good, **broken})
    with pytest.raises(InputError, match=rf"study\.db: the study study has no valid {next(iter(broken))}; "):
        read_board(ledger)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("entry", None),
        ("entry", {"recipe": 1, "key": "a", "place": 0}),
        ("entry", {"more": 1}),
        ("stage:KL", {"losses": ["x"], "figures": {}, "items": {}}),
        ("stage:KL", {"losses": 1, "figures": {}, "items": {}}),
        ("stage:KL", {"losses": [1.0], "figures": {"a": "b"}, "items": {}}),
    ],
)
def test_a_trial_that_another_program_wrote_is_refused(made: Callable[[str], Ledger], key: str, value: object) -> None:
    ledger = made("study.db")
    ledger._insert(ENTRIES[0], cheap)
    (record,) = ledger.records()
    ledger._backend.set_trial_user_attr(record.trial_id, key, value)
    with pytest.raises(
        InputError, match=r"study\.db: trial 0 of the study study is broken \(.*tinyq search did not write it"
    ):
        ledger.records()


def test_a_storage_that_fails_later_is_one_line(made: Callable[[str], Ledger], monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna
    from sqlalchemy.exc import OperationalError

    ledger = made("study.db")
    ledger._insert(ENTRIES[0], cheap)
    (record,) = ledger.records()

    def fail(*_: object, **__: object) -> None:
        raise optuna.exceptions.StorageInternalError("in the commit") from OperationalError(
            None, None, OSError("disk full")
        )

    monkeypatch.setattr(ledger._backend, "record_heartbeat", fail)
    monkeypatch.setattr(ledger._backend, "set_trial_state_values", fail)
    for call in (ledger.beat, ledger.wait):
        with pytest.raises(InputError, match=r"study\.db: the storage cannot be used \(.*disk full\)"):
            call(record)


def test_the_results_of_a_candidate_come_in_the_order_of_the_stages(made: Callable[[str], Ledger]) -> None:
    """Databases give a trial's attributes in any order."""
    ledger = made("study.db")
    stages = [*STAGES, "another"]
    for entry, order in zip(ENTRIES, (stages, stages[::-1], sorted(stages)), strict=False):
        known = {entry: {name: Measured(np.zeros(1)) for name in order}}
        ledger._insert(entry, known.__getitem__)
    assert [list(record.results) for record in ledger.records()] == [stages] * 3
