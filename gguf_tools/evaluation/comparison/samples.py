"""Reads the samples that lm-evaluation-harness writes (`--output_path DIR --log_samples`), of any model."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.evaluation.comparison.items import Item, Kind, Metric, Run, number
from gguf_tools.formats import text_file
from gguf_tools.text import shortened

SAMPLES = ".jsonl"
"""How the name of a file of samples ends."""
_NAME = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d\d-\d\dT[\d.+-]+))?\.jsonl")
_SUMMED: Mapping[str, Kind] = {
    "bits_per_byte": "bits_per_byte",
    "byte_perplexity": "bits_per_byte",
    "word_perplexity": "log_perplexity",
}
"""Metrics whose value is (log-likelihood, weight), best known first; a task's others say the same and are left aside."""
_LOWER_IS_BETTER = ("perplexity", "ppl", "brier_score", "bits_per_byte", "byte_perplexity", "word_perplexity")
_LABELS = (
    "question",
    "query",
    "problem",
    "input",
    "instruction",
    "prompt",
    "ctx",
    "sentence",
    "text",
    "premise",
    "goal",
)
"""Fields of a document that say best which it is."""
_LABEL_LENGTH = 60


def files_of(path: Path) -> list[Path]:
    """All files of samples and results in a folder, or in the folders directly in it; none for a file."""
    return [*_files(path), *_below(path, "results_*.json")] if path.is_dir() else []


def is_samples(path: Path) -> bool:
    """Whether a path is a file of samples, or a folder that has some, or results, in it or one folder below."""
    return path.suffix == SAMPLES or bool(files_of(path))


def read_samples(path: Path) -> Run:
    """The run in a folder of lm-evaluation-harness's output, or in one of its files of samples.

    Of several runs in a folder, the newest of each task counts. Raises InputError, naming file and line, for what is broken.
    """
    files = [path] if path.suffix == SAMPLES else _files(path)
    if not files:
        raise InputError(f"{path}: has no samples_*.jsonl; run the tasks with --output_path and --log_samples")
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise InputError(
            f"{path}: has the samples of several models ({shortened(names, 200)}); give one of these folders"
        )
    newest: dict[str, tuple[str, Path]] = {}
    for file in files:
        match = _NAME.fullmatch(file.name)
        task, date = (match["task"], match["date"] or "") if match else (file.stem, "")
        if task not in newest or date > newest[task][0]:
            newest[task] = (date, file)
    older = len(files) - len(newest)
    files_left = f"{older} older file{'s' if older > 1 else ''} of samples"
    notes = [f"{path}: left aside {files_left}"] if older else []
    results = _results(folders[0])
    metrics: dict[tuple[str, str], Metric] = {}
    for task, (_, file) in sorted(newest.items()):
        found, left = _task(task, file, results.get("higher_is_better", {}).get(task, {}))
        metrics |= {(task, metric.name): metric for metric in found}
        notes += [f"{task}: {name} has no number for each item, and was left aside" for name in left]
    if not metrics:
        raise InputError(f"{path}: its samples have no metric with a number for each item; nothing can be compared")
    model = results.get("model_name")
    return Run(
        path=str(path), model=model if isinstance(model, str) else folders[0].name, metrics=metrics, notes=tuple(notes)
    )


def _files(folder: Path) -> list[Path]:
    return sorted(_below(folder, "samples_*.jsonl"))


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    """Files in a folder, or else in the folders directly in it."""
    here = [path for path in folder.glob(pattern) if path.is_file()]
    yield from here or (path for path in folder.glob(f"*/{pattern}") if path.is_file())


def _results(folder: Path) -> Mapping[str, Any]:
    """The newest results beside samples: which model, and which metrics are better if higher; {} if there are none."""
    files = sorted(folder.glob("results_*.json"))
    if not files:
        return {}
    found = text_file.parse_json(
        text_file.read_text(files[-1], text_file.Kind.REPORT, InputError), files[-1], InputError
    )
    directions = found.get("higher_is_better", {}) if isinstance(found, dict) else None
    if not isinstance(directions, dict) or not all(isinstance(task, dict) for task in directions.values()):
        raise InputError(f"{files[-1]}: is not a result of lm-evaluation-harness; remove it, or run the tasks again")
    return {**found, "higher_is_better": directions}


def _task(task: str, file: Path, directions: Mapping[str, Any]) -> tuple[list[Metric], list[str]]:
    """The metrics of one file, and the names of those that have no number for each item."""
    items: dict[str, dict[Hashable, Item]] = {}
    left: dict[str, None] = {}
    rows = sorted(_rows(file), key=lambda row: (row["doc_id"], str(row.get("filter", ""))))
    seen: dict[tuple[object, object], int] = {}
    for row in rows:
        digest = row.get("doc_hash", row["doc_id"])
        given = row.get("filter")
        filtered = given if given and isinstance(given, str) else "none"
        count = seen[digest, filtered] = seen.get((digest, filtered), -1) + 1  # equal documents are told apart by order
        for name in _metrics_of(row):
            value = _value(row.get(name), name)
            if value is None:
                left[name] = None
                continue
            full = name if filtered == "none" else f"{name} ({filtered})"
            item = Item(_label(row), *value, prompt=str(row.get("prompt_hash", "")))
            # What values are divided by belongs to the text: bytes or words.
            items.setdefault(full, {})[digest, count, item.weight] = item
    summed = [name for name in _SUMMED if name in items]
    for name in summed[1:]:
        del items[name]
    found = [
        Metric(
            task=task,
            name=name,
            kind=_SUMMED.get(name, "mean"),
            higher_is_better=_higher(name.partition(" (")[0], directions),
            items=values,
        )
        for name, values in items.items()
    ]
    return found, [name for name in left if not any(name == full.partition(" (")[0] for full in items)]


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The samples of a file. Raises InputError with the line of one that is broken, or if there are none."""
    text = text_file.read_text(file, text_file.Kind.SAMPLES, InputError)
    count = 0
    for count, line in enumerate(filter(str.strip, text.split("\n")), 1):
        origin = f"{file}:{count}"
        row = text_file.parse_json(line, Path(origin), InputError)
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("doc_id"), int)
            or not isinstance(row.get("doc_hash", ""), str)
        ):
            raise InputError(
                f"{origin}: is not a sample of lm-evaluation-harness (an object with doc_id); run the tasks again"
            )
        yield row
    if not count:
        raise InputError(f"{file}: has no samples; run the task again with --log_samples")


def _metrics_of(row: Mapping[str, Any]) -> list[str]:
    names = row.get("metrics")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _value(found: object, name: str) -> tuple[float, float] | None:
    """A metric's value and weight; None for what is no number."""
    if name in _SUMMED:
        pair = found if isinstance(found, list) and len(found) == 2 else (None, None)
        numbers = [number(part) for part in pair]
        value, weight = numbers[0], numbers[1]
        return (value, weight) if value is not None and weight is not None and weight >= 1 else None
    value = number(found)
    return None if value is None else (value, 1.0)


def _higher(name: str, directions: Mapping[str, Any]) -> bool:
    given = directions.get(name)
    return given if isinstance(given, bool) else name not in _LOWER_IS_BETTER


def _label(row: Mapping[str, Any]) -> str:
    """Which item it is, for people: the document's question, or else the end of the prompt, or its number."""
    document = row.get("doc")
    fields = document if isinstance(document, dict) else {}
    texts = [fields.get(name) for name in _LABELS] + list(fields.values())
    text = next((text for text in texts if isinstance(text, str) and text.strip()), f"number {row['doc_id']}")
    return shortened(" ".join(text.split()), _LABEL_LENGTH)
