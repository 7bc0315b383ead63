"""The study in Optuna's storage: candidates as trials that workers lease, measure and give back.

A trial waits, is leased by one worker (a compare-and-set in the database) while a stage is measured, and waits again for the
next stage until it is complete, pruned or failed. The worker's heartbeat keeps the lease; a trial whose worker has died waits
again, and keeps the results that it has. Whoever reads the study sees the same records, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gguf_tools.errors import InputError
from gguf_tools.text import shortened
from surgery.search.records import STAGES, Entry, Measured, Record, State
from surgery.search.storage import HEARTBEAT, database_file, load_optuna, opened_storage, reported, shown_url, unusable

if TYPE_CHECKING:
    import optuna

Results = Callable[[Entry], Mapping[str, Measured]]
"""An entry → the results of stages that need no measuring."""
SETUP, PATH, ENTRY, STAGE = "setup", "path", "entry", "stage:"
GENERATION = "generation:"
"""Begins the study's attribute that has the keys of a generation's candidates, set when all of them have been added."""
FORM: Mapping[str, Callable[[Any], bool]] = {
    "layer_count": lambda value: type(value) is int and value > 0,
    "source": lambda value: isinstance(value, str),
    "objectives": lambda value: _are(value, str) and bool(value),
    "strategies": lambda value: _are(value, str),
    "set": lambda value: isinstance(value, str),
    "questions": lambda value: _are(value, int) and len(value) == 2,
    "passages": lambda value: _are(value, int) and len(value) == 2,
}
"""What a report needs to know of how a study was begun."""
DRAWS = 20
"""Draws of the sampler for each candidate that is wanted, at most."""


class Ledger:
    """A study of a storage; `setup` is what all its workers must agree on."""

    def __init__(self, url: str, name: str, study: optuna.Study, backend: optuna.storages.RDBStorage) -> None:
        self.url = url
        self.name = name
        self.study = study
        self._backend = backend

    @classmethod
    def create(cls, url: str, name: str, setup: Mapping[str, Any], directions: Sequence[str], path: str) -> Ledger:
        """The study `name`, made if it is not there; InputError where it is there with another setup, naming the difference."""
        optuna = load_optuna()
        backend = opened_storage(url, make=True)
        try:
            study = optuna.create_study(
                storage=backend, study_name=name, directions=list(directions), load_if_exists=True
            )
            found = study.user_attrs.get(SETUP)
            if found is None:
                study.set_user_attr(PATH, path)
                study.set_user_attr(SETUP, dict(setup))
                found = study.user_attrs[SETUP]
        except Exception as error:
            raise unusable(url, error) from error
        difference = next((key for key in setup if found.get(key) != setup[key]), None)
        if difference == "source":
            raise InputError(
                f"{shown_url(url)}: the study {name} was begun with another file than {path} is now; give that, or another "
                "--study or --storage"
            )
        if difference is not None:
            raise InputError(
                f"{shown_url(url)}: the study {name} was begun with {difference} {found.get(difference)!r}, and this command "
                f"gives {setup[difference]!r}; give the same, or another --study or --storage"
            )
        return cls(url, name, study, backend)

    @classmethod
    def open(cls, url: str, name: str | None) -> Ledger:
        """A study that is there; InputError where it is not, or where it is not said which of several."""
        optuna = load_optuna()
        file = database_file(url)
        if file and not file.is_file():
            raise InputError(f"{file}: there is no such study; expected a file or a storage URL")
        backend = opened_storage(url, make=False)
        try:
            names = sorted(optuna.get_all_study_names(backend))
            own = [n for n in names if SETUP in backend.get_study_user_attrs(backend.get_study_id_from_name(n))]
        except Exception as error:
            raise unusable(url, error) from error
        searches = [n for n in own if not n.endswith(HELD_OUT)]
        if name is None and len(searches) != 1:
            listed = ", ".join(searches) or "none"
            raise InputError(f"{shown_url(url)}: holds {len(searches)} studies ({listed}); name one with --study")
        chosen = name or searches[0]
        if chosen not in own:
            raise InputError(
                f"{shown_url(url)}: holds no search named {chosen}; it holds {', '.join(searches) or 'none'}"
            )
        try:
            return cls(url, chosen, optuna.load_study(study_name=chosen, storage=backend), backend)
        except Exception as error:
            raise unusable(url, error) from error

    @property
    @reported
    def setup(self) -> dict[str, Any]:
        """What the study was begun with. InputError where that is not what `tinyq search` writes."""
        found = self.study.user_attrs.get(SETUP)
        wrong = next(
            (key for key, fits in FORM.items() if not isinstance(found, dict) or not fits(found.get(key))), None
        )
        if wrong is not None or not isinstance(found, dict):
            raise InputError(
                f"{shown_url(self.url)}: the study {self.name} has no valid {wrong}; tinyq search did not write it"
            )
        return found

    @property
    @reported
    def path(self) -> str:
        """Where the base lay when the study was begun."""
        return str(self.study.user_attrs.get(PATH, ""))

    @reported
    def has(self, name: str) -> bool:
        """Whether the storage holds a study of that name."""
        return name in load_optuna().get_all_study_names(self._backend)

    @reported
    def records(self) -> list[Record]:
        """All candidates in the order of their places; of two with the same stack the one with the lower number."""
        found: dict[str, Record] = {}
        for trial in sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number):
            if ENTRY in trial.user_attrs:
                record = self._record(trial)
                found.setdefault(record.entry.key, record)
        return sorted(found.values(), key=lambda record: record.entry.place)

    def _record(self, trial: optuna.trial.FrozenTrial) -> Record:
        """A trial as a record; InputError where it does not hold what `tinyq search` writes."""
        try:
            return _record(trial)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{shown_url(self.url)}: trial {trial.number} of the study {self.name} is broken ({shortened(repr(error))}); "
                "tinyq search did not write it"
            ) from error

    def begun(self) -> list[Record]:
        """The candidates of all generations that were added whole: what is measured, and what the next generation is made of."""
        added = {key for name, keys in self._attributes().items() if name.startswith(GENERATION) for key in keys}
        return [record for record in self.records() if record.entry.key in added]

    @reported
    def _attributes(self) -> dict[str, Any]:
        """What all workers know of the study."""
        found: dict[str, Any] = self.study.user_attrs
        return found

    @reported
    def add(self, entries: Sequence[Entry], known_results: Results | None = None) -> None:
        """Add whole generations of candidates; `known_results` gives what is known of each without measuring.

        Several workers may add the same ones at the same time, or after one that died in the middle: what is there is left out.
        Nothing is measured before its generation is complete, as every decision compares all its candidates.
        """
        known = {record.entry.key for record in self.records()}
        for entry in entries:
            if entry.key not in known:
                self._insert(entry, known_results)
        self._begin(entries)

    def _begin(self, entries: Sequence[Entry]) -> None:
        """Say that the generations of these entries are complete."""
        there = self._attributes()
        for generation in sorted({entry.generation for entry in entries}):
            keys = [entry.key for entry in entries if entry.generation == generation]
            if f"{GENERATION}{generation}" not in there:
                self.study.set_user_attr(f"{GENERATION}{generation}", keys)

    @reported
    def sample(
        self,
        records: Sequence[Record],
        draw: Callable[[optuna.Trial], Entry | None],
        count: int,
        seed: int,
        known_results: Results | None = None,
    ) -> int:
        """Add a generation of up to `count` candidates that `draw` makes of what Optuna's TPE sampler suggests; returns how many.

        The sampler knows the drawn candidates of `records`, all of them finished, and nothing else, so that every worker draws
        the same. A draw that gives no entry, or one whose key is known, is not kept; twenty times as many draws are made at most.
        """
        optuna = load_optuna()
        state = optuna.trial.TrialState
        known = {record.entry.key for record in records}
        there = {record.entry.key for record in self.records()}
        earlier = {record.trial_id for record in records}
        before = [t for t in self.study.get_trials(deepcopy=False) if t.params and t._trial_id in earlier]
        sampler = optuna.samplers.TPESampler(seed=seed + len(before), constant_liar=True)
        memory = optuna.create_study(directions=self.study.directions, sampler=sampler)
        memory.add_trials([trial for trial in before if trial.state in (state.COMPLETE, state.PRUNED)])
        added: list[Entry] = []
        for _ in range(DRAWS * count):
            if len(added) == count:
                break
            trial = memory.ask()
            entry = draw(trial)
            if entry is None or entry.key in known:
                memory.tell(trial, state=state.FAIL)
                continue
            known.add(entry.key)
            added.append(entry)
            if entry.key not in there:
                self._insert(entry, known_results, trial.params, trial.distributions)
        self._begin(added)
        return len(added)

    def _insert(
        self,
        entry: Entry,
        known_results: Results | None,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, optuna.distributions.BaseDistribution] | None = None,
    ) -> None:
        """Add one candidate, which waits; `params` are what it was drawn from, for the sampler and for optuna-dashboard."""
        trials = load_optuna().trial
        results = {} if known_results is None else known_results(entry)
        made = trials.create_trial(
            state=trials.TrialState.WAITING,
            user_attrs={
                ENTRY: asdict(entry),
                "recipe": entry.name,
                **{f"{STAGE}{name}": found.as_dict() for name, found in results.items()},
            },
            params=dict(params or {}),
            distributions=dict(distributions or {}),
        )
        self.study.add_trial(made)

    @reported
    def lease(self, record: Record, *, without: str) -> Lease | None:
        """The right to measure the stage `without` of a candidate.

        None where another worker has the candidate, or where it has the stage's result or is finished by now.
        """
        optuna = load_optuna()
        try:
            self._backend.record_heartbeat(record.trial_id)
            taken = self._backend.set_trial_state_values(record.trial_id, optuna.trial.TrialState.RUNNING)
        except optuna.exceptions.UpdateFinishedTrialError:
            return None
        if taken and f"{STAGE}{without}" in self._backend.get_trial(record.trial_id).user_attrs:
            self.wait(record)
            return None
        return Lease(self, record) if taken else None

    @reported
    def give_back_stale(self) -> None:
        """Let the candidates wait again whose workers have shown no sign of life for `GRACE` seconds."""
        optuna = load_optuna()
        # Optuna's own function for this marks such trials as failed.
        for trial_id in self._backend._get_stale_trial_ids(self.study._study_id):
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._backend.set_trial_state_values(trial_id, optuna.trial.TrialState.WAITING)

    @reported
    def finish(self, record: Record, state: State, reason: str = "", values: Sequence[float] | None = None) -> None:
        """End a candidate; nothing happens where another worker has ended it, which came to the same result."""
        optuna = load_optuna()
        states = {
            "complete": optuna.trial.TrialState.COMPLETE,
            "pruned": optuna.trial.TrialState.PRUNED,
            "failed": optuna.trial.TrialState.FAIL,
        }
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            if reason:
                self._backend.set_trial_user_attr(record.trial_id, "reason", reason)
            self._backend.set_trial_state_values(record.trial_id, states[state], values)

    @reported
    def store(self, record: Record, stage: str, step: int, found: Measured) -> None:
        """Keep the result of a stage."""
        self._backend.set_trial_user_attr(record.trial_id, f"{STAGE}{stage}", found.as_dict())
        mean = float(found.losses.mean()) if len(found.losses) else 0.0
        self._backend.set_trial_intermediate_value(record.trial_id, step, mean)

    @reported
    def wait(self, record: Record) -> None:
        """Let a candidate wait for its next stage."""
        optuna = load_optuna()
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._backend.set_trial_state_values(record.trial_id, optuna.trial.TrialState.WAITING)

    @reported
    def beat(self, record: Record) -> None:
        """Show that the worker of a candidate lives."""
        self._backend.record_heartbeat(record.trial_id)


HELD_OUT = " (held out)"
"""How the name of the study ends in which the best candidates are measured on held-out items."""


class Lease:
    """The right to measure a candidate, which waits again when that ends; until then a thread shows signs of life."""

    def __init__(self, ledger: Ledger, record: Record) -> None:
        self._ledger = ledger
        self.record = record
        self._ended = False

    @contextlib.contextmanager
    def held(self) -> Iterator[Lease]:
        """Inside, other workers see that the candidate is being measured."""
        stop = threading.Event()

        def beat() -> None:
            # Where the storage fails, what is stored next says so.
            with contextlib.suppress(InputError):
                while not stop.wait(HEARTBEAT):
                    self._ledger.beat(self.record)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()
            if not self._ended:
                self._ledger.wait(self.record)

    def done(self, stage: str, step: int, found: Measured) -> None:
        """Keep the result of a stage; the candidate waits for the next."""
        self._ledger.store(self.record, stage, step, found)

    def failed(self, reason: str) -> None:
        """The candidate could not be measured."""
        self._ended = True
        self._ledger.finish(self.record, "failed", reason)


def _are(values: object, kind: type) -> bool:
    """Whether this is a list of values of one type."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _place(stage: str) -> tuple[int, str]:
    """Where a stage comes in the order of stages; others last."""
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)


def _record(trial: optuna.trial.FrozenTrial) -> Record:
    """A trial of the study as a record."""
    stored = trial.user_attrs[ENTRY]
    states: dict[str, State] = {
        "WAITING": "waiting",
        "RUNNING": "running",
        "COMPLETE": "complete",
        "PRUNED": "pruned",
        "FAIL": "failed",
    }
    measured = {
        key.removeprefix(STAGE): Measured.read(value)
        for key, value in trial.user_attrs.items()
        if key.startswith(STAGE)
    }
    # A database gives the attributes in any order.
    results = {name: measured[name] for name in sorted(measured, key=_place)}
    return Record(
        entry=Entry(**stored),
        number=trial.number,
        trial_id=trial._trial_id,
        state=states[trial.state.name],
        results=results,
        reason=trial.user_attrs.get("reason", ""),
    )
