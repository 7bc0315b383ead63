"""Results of benchmark runs, which other programs write: each is compared with one that is in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fuzzing.mutate import json_mutator
from fuzzing.target import Prepared, Target
from gguf_tools.evaluation.comparison.paired import compare, read_run
from gguf_tools.evaluation.comparison.report import report_of

SAMPLES = "\n".join(
    json.dumps(
        {
            "doc_id": number,
            "doc": {"question": f"Question {number}?", "choices": ["a", "b"]},
            "filter": "none",
            "metrics": ["acc", "rouge", "bits_per_byte"],
            "doc_hash": f"{number:064x}",
            "prompt_hash": "0",
            "acc": float(number % 2),
            "rouge": number / 7,
            "bits_per_byte": [-3.5 * number, 9 + number],
        }
    )
    for number in range(4)
).encode()
RESULTS = json.dumps({"model_name": "m", "higher_is_better": {"t": {"acc": True, "rouge": False}}}).encode()
CARD = json.dumps(
    {
        "model": {"path": "m.gguf"},
        "card": {
            "answers": [{"question": "Who?", "mode": "direct", "right": True}],
            "held_out_answers": [{"question": "Where?", "mode": None, "right": False}],
            "completions": [{"prompt": "Once", "coherent": True}],
            "passages": [{"nats": 10.5, "tokens": 4, "bytes": 20}],
        },
    }
).encode()
KEYS = [
    "doc_id",
    "doc",
    "filter",
    "metrics",
    "doc_hash",
    "acc",
    "rouge",
    "bits_per_byte",
    "higher_is_better",
    "model_name",
]
CARD_KEYS = [
    "model",
    "models",
    "card",
    "answers",
    "completions",
    "passages",
    "question",
    "right",
    "nats",
    "bytes",
    "mode",
]


def _compared(name: str, good: bytes, *seeds: bytes) -> Callable[[Path], Prepared]:
    """Compare a file with a good one, both ways, and print the reports."""

    def prepare(folder: Path) -> Prepared:
        (folder / "good").mkdir()
        other, path = folder / "good" / name, folder / name
        other.write_bytes(good)

        def read(data: bytes) -> bool:
            path.write_bytes(data)
            for pair in ((path, other), (other, path)):
                found = compare(*pair)
                report_of(found).as_text()
                json.dumps(found.as_dict(), allow_nan=False)
            return True

        return Prepared([good, *seeds], read)

    return prepare


def _results(folder: Path) -> Prepared:
    (folder / "samples_t_2026-01-01T00-00-00.jsonl").write_bytes(SAMPLES)
    path = folder / "results_2026-01-01T00-00-00.json"

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        return bool(read_run(folder).metrics)

    return Prepared([RESULTS], read)


TARGETS = (
    Target(
        name="samples",
        title="lm-evaluation-harness's samples, compared",
        prepare=_compared("samples_t.jsonl", SAMPLES, *SAMPLES.split(b"\n")),
        mutate=json_mutator(KEYS),
        executions=20_000,
    ),
    Target(
        name="harness-results",
        title="lm-evaluation-harness's results beside samples",
        prepare=_results,
        mutate=json_mutator(KEYS),
        executions=100_000,
    ),
    Target(
        name="card-report",
        title="reports of the card suite, compared",
        prepare=_compared("report.json", CARD),
        mutate=json_mutator(CARD_KEYS),
        executions=20_000,
    ),
)
