"""The paired comparison of two runs, and the correction for the number of tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.statistics import (
    RESAMPLES,
    SIGNIFICANCE,
    Float,
    Interval,
    holm,
    least_flips,
    least_p,
    mcnemar,
    paired_difference,
)
from gguf_tools.evaluation.comparison.items import Item, Metric, Run
from gguf_tools.evaluation.comparison.reports import read_report
from gguf_tools.evaluation.comparison.samples import SAMPLES, is_samples, read_samples

_EITHER_WAY = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
"""An item that only the first run has right, and one that only the second has, as value and weight of both."""
Test = Literal["McNemar", "permutation"]
Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of one task on the items that both runs have; `first` and `second` are its values on these.

    `p_value` is two-sided: McNemar's exact test if every value is 0 or 1, otherwise a permutation test of the items' two
    results. `corrected` is it after Holm's correction for all metrics compared; `interval` that of the difference (95%, by the
    bootstrap). `lost` and `gained` name the items that only the first, or only the second, has right; None if values are not 0
    or 1. `only_first` and `only_second` count items of one run only, `asked_differently` those whose prompts differ.
    """

    task: str
    metric: str
    items: int
    first: float
    second: float
    interval: Interval
    test: Test
    p_value: float
    corrected: float
    higher_is_better: bool
    lost: tuple[str, ...] | None
    gained: tuple[str, ...] | None
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    asked_differently: int

    @property
    def difference(self) -> float:
        """The second value minus the first."""
        return self.second - self.first

    @property
    def verdict(self) -> Verdict:
        """What can be said of the second run after the correction."""
        if self.corrected >= SIGNIFICANCE:
            return "no difference shown"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what only one run has is counted."""
        found = {**asdict(self), "difference": self.difference, "verdict": self.verdict}
        found["interval"] = self.interval.as_list()
        found |= {name: list(items) for name in ("lost", "gained") if (items := getattr(self, name)) is not None}
        return found | {"only_first": len(self.only_first), "only_second": len(self.only_second)}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs and the metrics that they share, in the order of the tasks; `missing` names metrics of one run only."""

    first: Run
    second: Run
    compared: tuple[Compared, ...]
    missing: tuple[tuple[str, str, str], ...]
    """(path of the run that has it, task, metric)."""

    @property
    def shown(self) -> tuple[Compared, ...]:
        """The differences that survive the correction."""
        return tuple(one for one in self.compared if one.verdict != "no difference shown")

    @property
    def worse(self) -> tuple[Compared, ...]:
        """Those for the worse."""
        return tuple(one for one in self.compared if one.verdict == "worse")

    @property
    def tests(self) -> int:
        """The number of tests that is corrected for."""
        return len(self.compared)

    @property
    def flips(self) -> int:
        """The fewest items that must change, all one way, for the first difference to survive the correction."""
        return least_flips(SIGNIFICANCE / self.tests)

    def too_small(self, one: Compared) -> bool:
        """Whether no result on this metric's items could survive the correction."""
        least = least_p(one.items, None if one.test == "McNemar" else RESAMPLES)
        return least >= SIGNIFICANCE / self.tests

    def as_dict(self) -> dict[str, Any]:
        """The report that `tinyq compare --json` writes."""
        return {
            "first": {"path": self.first.path, "model": self.first.model},
            "second": {"path": self.second.path, "model": self.second.model},
            "tests": self.tests,
            "significance": SIGNIFICANCE,
            "shown": len(self.shown),
            "flips": self.flips,
            "compared": [one.as_dict() for one in self.compared],
            "missing": [{"path": path, "task": task, "metric": metric} for path, task, metric in self.missing],
            "notes": [*self.first.notes, *self.second.notes],
        }


def read_run(path: Path) -> Run:
    """A folder of lm-evaluation-harness's output, one of its files of samples, or a report of `tinyq eval --suite card`."""
    if not path.exists():
        raise InputError(
            f"{path}: does not exist; give a folder that lm-evaluation-harness wrote, or a tinyq eval report"
        )
    if path.is_dir() and not is_samples(path):
        raise InputError(f"{path}: has no samples_*.jsonl; run the tasks with --output_path and --log_samples")
    return read_samples(path) if is_samples(path) else read_report(path)


def compare(first: Path, second: Path, *, tasks: Sequence[str] = (), metrics: Sequence[str] = ()) -> Comparison:
    """Compare two runs item by item; only `tasks` and `metrics` if any are named. Two files of samples may be named differently.

    Raises InputError for runs that have no item in common, and for a name that neither run has.
    """
    one, two = read_run(first), read_run(second)
    if first.suffix == second.suffix == SAMPLES:
        two = _as_task(two, next(iter(one.metrics.values())).task)
    wanted = _wanted({**one.metrics, **two.metrics}, tasks, metrics)
    common = [key for key in wanted if key in one.metrics and key in two.metrics]
    pairs = {key: [item for item in one.metrics[key].items if item in two.metrics[key].items] for key in common}
    tested = [(key, items) for key, items in pairs.items() if items]
    if not tested:
        raise InputError(f"{first} and {second} have no item in common: {_why_none(one, two, wanted, common)}")
    found = [_compared(one.metrics[key], two.metrics[key], items) for key, items in tested]
    corrected = holm([result["p_value"] for result in found])
    missing = [
        (run.path, *key)
        for run, other in ((one, two), (two, one))
        for key in wanted
        if key in run.metrics and key not in other.metrics
    ]
    return Comparison(
        first=one,
        second=two,
        compared=tuple(Compared(**result, corrected=p) for result, p in zip(found, corrected, strict=True)),
        missing=tuple(missing),
    )


def _as_task(run: Run, task: str) -> Run:
    """The run of one task under another name."""
    return replace(run, metrics={(task, name): replace(found, task=task) for (_, name), found in run.metrics.items()})


def _wanted(
    known: dict[tuple[str, str], Metric], tasks: Sequence[str], metrics: Sequence[str]
) -> list[tuple[str, str]]:
    """The metrics asked for, all if none are named. Raises InputError for a name that is not there."""
    for what, names, there in (
        ("task", tasks, {task for task, _ in known}),
        ("metric", metrics, {metric for _, metric in known}),
    ):
        for name in names:
            if name not in there:
                raise InputError(f"no {what} {name!r} in either run; expected one of {', '.join(sorted(there))}")
    return [key for key in known if (not tasks or key[0] in tasks) and (not metrics or key[1] in metrics)]


def _why_none(one: Run, two: Run, wanted: Sequence[tuple[str, str]], common: Sequence[tuple[str, str]]) -> str:
    if common:
        return "their questions differ; run both on the same version of the task"
    names = (", ".join(dict.fromkeys(key[0] for key in wanted if key in run.metrics)) or "none" for run in (one, two))
    return f"the tasks are {' and '.join(names)}; run both on the same tasks"


def _compared(first: Metric, second: Metric, keys: Sequence[Hashable]) -> dict[str, Any]:
    """The fields of `Compared` but for the correction."""
    before, after = [first.items[key] for key in keys], [second.items[key] for key in keys]
    one, two = _columns(before), _columns(after)
    combine = _combination(first)
    answers = first.kind == "mean" and all(item.value in (0.0, 1.0) for item in (*before, *after))
    found = paired_difference([one], [two], combine, [_EITHER_WAY] if answers else None)
    lost = gained = None
    test: Test = "permutation"
    p_value = found.p_value
    if answers:
        test = "McNemar"
        p_value = mcnemar([bool(item.value) for item in before], [bool(item.value) for item in after]).p_value
        lost, gained = (
            tuple(a.label for a, b in zip(before, after, strict=True) if a.value == right and b.value != right)
            for right in ((1.0, 0.0) if first.higher_is_better else (0.0, 1.0))
        )
    return {
        "task": first.task,
        "metric": first.name,
        "items": len(keys),
        "first": float(combine([one.mean(axis=0, keepdims=True)])[0]),
        "second": float(combine([two.mean(axis=0, keepdims=True)])[0]),
        "interval": found.interval,
        "test": test,
        "p_value": p_value,
        "higher_is_better": first.higher_is_better,
        "lost": lost,
        "gained": gained,
        "only_first": tuple(item.label for key, item in first.items.items() if key not in second.items),
        "only_second": tuple(item.label for key, item in second.items.items() if key not in first.items),
        "asked_differently": sum(a.prompt != b.prompt for a, b in zip(before, after, strict=True)),
    }


def _columns(items: Sequence[Item]) -> Float:
    return np.array([[item.value, item.weight] for item in items])


def _combination(metric: Metric) -> Any:
    """The statistic of the means of values and weights, (r, 2) → (r,)."""
    if metric.kind == "mean":
        return lambda means: means[0][:, 0]
    scale = math.log(2) if metric.kind == "bits_per_byte" else 1.0
    return lambda means: -means[0][:, 0] / means[0][:, 1] / scale
