"""Reads the report of the card suite that `tinyq eval --json` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.evaluation.comparison.items import Item, Metric, Run, number
from gguf_tools.formats import text_file
from gguf_tools.text import shortened

_LABEL_LENGTH = 60
_LISTS = (
    ("questions", "right", "answers", "question", "right"),
    ("held-out questions", "right", "held_out_answers", "question", "right"),
    ("completions", "coherent", "completions", "prompt", "coherent"),
)
"""Task, metric, the list in the card, and the keys of an item's text and of its result."""


def read_report(path: Path) -> Run:
    """The card suite's items in a report of one model. Raises InputError if the file is another one, or broken."""
    found = text_file.parse_json(text_file.read_text(path, text_file.Kind.REPORT, InputError), path, InputError)
    report = found if isinstance(found, dict) else {}
    if isinstance(report.get("models"), list):
        models = report["models"]
        if len(models) != 1 or not isinstance(models[0], dict):
            raise InputError(f"{path}: has {len(models)} models, and their differences; write a report of each one")
        report = models[0]
    card, model = report.get("card"), report.get("model")
    if not isinstance(card, dict) or not isinstance(model, dict):
        raise InputError(
            f"{path}: is no report with answers to questions; give one that tinyq eval --suite card --json wrote, or a folder"
            " that lm-evaluation-harness wrote with --log_samples"
        )
    metrics = {}
    for task, name, key, text, result in _LISTS:
        items = _items(card.get(key, []), text, result, f"{path}: card.{key}")
        if items:
            metrics[task, name] = Metric(task=task, name=name, items=items)
    passages = card.get("passages", [])
    if passages:
        metrics["text", "bits_per_byte"] = _text(passages, path)
    if not metrics:
        raise InputError(f"{path}: its card has no items to compare; run tinyq eval --suite card --json again")
    return Run(path=str(path), model=str(model.get("path", path.name)), metrics=metrics)


def _items(rows: Any, text: str, result: str, where: str) -> dict[Hashable, Item]:
    """The items of one list; equal texts are told apart by order."""
    found: dict[Hashable, Item] = {}
    asked: Counter[tuple[object, object]] = Counter()
    for place, row in enumerate(rows if isinstance(rows, list) else [None]):
        if not isinstance(row, dict) or not isinstance(row.get(text), str) or not isinstance(row.get(result), bool):
            raise InputError(f"{where}[{place}]: expected an object with {text} and {result}; run tinyq eval again")
        question = (row[text], str(row.get("mode")))
        found[question, asked[question]] = Item(
            shortened(" ".join(row[text].split()), _LABEL_LENGTH), float(row[result])
        )
        asked[question] += 1
    return found


def _text(passages: Any, path: Path) -> Metric:
    """Bits per byte of the text, passage by passage."""
    items: dict[Hashable, Item] = {}
    for place, row in enumerate(passages if isinstance(passages, list) else [None]):
        values: Mapping[str, Any] = row if isinstance(row, dict) else {}
        nats, size = number(values.get("nats")), number(values.get("bytes"))
        if nats is None or size is None or size < 1:
            raise InputError(
                f"{path}: card.passages[{place}]: expected an object with nats and bytes; run tinyq eval again"
            )
        items[place, size] = Item(f"passage {place + 1}", -nats, size)
    return Metric(task="text", name="bits_per_byte", kind="bits_per_byte", higher_is_better=False, items=items)
