"""The inputs of the scenarios: tiny, made once a run by the library, and copied for each try."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguf_tools import convert, operate, quantize, split
from gguf_tools.editing.header_toml import header_toml
from gguf_tools.evaluation.golden.write import write_golden
from gguf_tools.families.registry import family_named
from gguf_tools.formats.gguf.header import read_header, string
from gguf_tools.formats.gguf.imatrix import write_imatrix
from gguf_tools.formats.gguf.split import sibling_parts
from quant.imatrix import ImportanceMatrix, Statistics

PROMPTS = "The cat and the other\nin the end\n"
TEXT = "Then the cat went on and on, and the end was near. " * 12
PASSAGES = "\n\n".join(f"The {word} went on, and the end was near.\n" for word in ("cat", "dog", "hen", "owl"))
HIDDEN = 64


class Materials:
    """Inputs by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        """Inputs are kept in `folder`, which must be empty or of an earlier call."""
        self.folder = folder
        self._lock = threading.RLock()

    def path(self, name: str) -> Path:
        """The input called `name`, a file or a folder, which must not be changed; KeyError where none is called so."""
        with self._lock:
            path = self.folder / name
            if not path.exists():
                MAKERS[name](self, path)
            return path


def _checkpoint(seed: int) -> Callable[[Materials, Path], None]:
    def make(_: Materials, path: Path) -> None:
        write = family_named("qwen3").tiny
        if write is None:
            raise ValueError("qwen3 makes no tiny checkpoint")
        write(path, "plain", seed)

    return make


def _f32(made: Materials, path: Path) -> None:
    convert(made.path("checkpoint"), path, type="f32")


def _small(made: Materials, path: Path) -> None:
    quantize(made.path("f32.gguf"), path, "q8_0")


def _changed(made: Materials, path: Path) -> None:
    """A GGUF that was changed in place, with the record that takes it back beside it."""
    path.write_bytes(made.path("f32.gguf").read_bytes())
    operate(path, None, "swap(0:1)", in_place=True)


def _part(made: Materials, path: Path) -> None:
    """The first of two shards, with the second beside it."""
    split(made.path("f32.gguf"), path.with_name("part"), max_tensors=20)


def _header(made: Materials, path: Path) -> None:
    """The header of f32.gguf as TOML, with another name."""
    header = read_header(made.path("f32.gguf"))
    lines = header_toml(replace(header, metadata={**header.metadata, "general.name": string("Edited")}), header.tensors)
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _matrix(_: Materials, path: Path) -> None:
    entry = Statistics(np.ones((1, HIDDEN), np.float32), np.ones(1, np.float32))
    entries = {f"blk.{n}.attn_q.weight": entry for n in range(3)}
    write_imatrix(ImportanceMatrix(entries=entries, datasets=(), chunks=1, chunk_size=1, name="m"), path)


def _written(text: str) -> Callable[[Materials, Path], None]:
    def make(_: Materials, path: Path) -> None:
        path.write_text(text, "utf-8")

    return make


def _task(_: Materials, path: Path) -> None:
    """A task of lm-evaluation-harness with two questions, whose data lie beside it."""
    data = path.with_suffix(".jsonl")
    rows = [{"question": "The cat", "choices": [" and", " or"], "answer": n} for n in range(2)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = {
        "task": "two_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(data)},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path.write_text(json.dumps(task), "utf-8")  # JSON is YAML


def _samples(right: Sequence[bool]) -> Callable[[Materials, Path], None]:
    """What lm-evaluation-harness writes of a task's questions."""

    def row(number: int, value: bool) -> str:
        return json.dumps(
            {"doc_id": number, "doc": {"question": f"{number}?"}, "metrics": ["acc"], "acc": float(value)}
        )

    return _written("".join(row(number, value) + "\n" for number, value in enumerate(right)))


def _study(made: Materials, path: Path) -> None:
    """A finished study of the deleted blocks of f32.gguf, by a process of its own, which leaves no connection open."""
    line = [
        "search",
        str(made.path("f32.gguf")),
        "--objective",
        "perplexity",
        "--strategy",
        "blocks",
        "--allow",
        "delete",
    ]
    line += [
        "--text",
        str(made.path("passages.txt")),
        "--storage",
        str(path),
        "--study",
        "found",
        "--threads",
        "1",
        "-q",
    ]
    subprocess.run([sys.executable, "-m", "gguf_tools", *line], check=True, cwd=Path(__file__).parents[2])
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")


def _golden(made: Materials, path: Path) -> None:
    path.mkdir()
    write_golden(made.path("checkpoint"), path)


MAKERS: dict[str, Callable[[Materials, Path], None]] = {
    "checkpoint": _checkpoint(1),
    "f32.gguf": _f32,
    "small.gguf": _small,
    "changed.gguf": _changed,
    "matrix.gguf": _matrix,
    "part-00001-of-00002.gguf": _part,
    "header.toml": _header,
    "template.jinja": _written("{% for message in messages %}{{ message.content }}{% endfor %}" + " " * 2000),
    "golden": _golden,
    "passages.txt": _written(PASSAGES),
    "study.db": _study,
    "task.yaml": _task,
    "samples_one.jsonl": _samples([True, False, True]),
    "samples_two.jsonl": _samples([True, True, False]),
    "recipe.toml": _written('steps = ["swap(0:1)", "scale(2@0.5)"]\n'),
    "text.txt": _written(TEXT),
    "prompts.txt": _written(PROMPTS),
}
"""Name → what makes the input at a path."""


def companions(path: Path) -> list[Path]:
    """What lies beside an input and belongs to it: the undo records of a file, the other shards of a split one."""
    return [*sorted(path.parent.glob(f".{path.name}.*")), *sibling_parts(path)[1:]]
