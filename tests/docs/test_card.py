"""The page on the card suite says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from docs.generate import DOCS
from gguf_tools.evaluation.card.expected import KEYS, KINDS
from gguf_tools.evaluation.card.parts import DEFAULT_WEIGHTS, WORST_BITS
from gguf_tools.evaluation.card.questions import COMPLETIONS, SET_SIZE, SETS, load_completions, load_questions
from gguf_tools.evaluation.card.statistics import clopper_pearson

PAGE = (DOCS / "card.md").read_text("utf-8")


def test_weights() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert {name: float(weight) for name, weight in rows} == DEFAULT_WEIGHTS
    assert f"bits per byte / {WORST_BITS:g}" in PAGE


def test_sets() -> None:
    for name, count in re.findall(r"`--questions (\w+)` \((\d+)", PAGE):
        assert len(load_questions(SETS[name][0])) == int(count)
    assert set(re.findall(r"`--questions (\w+)`", PAGE)) == set(SETS)
    assert f"{3 * SET_SIZE}, with {3 * COMPLETIONS} texts" in PAGE
    assert all(len(load_completions(completions)) >= 3 * COMPLETIONS for _, completions, _ in SETS.values())


def test_interval() -> None:
    found = re.search(r"(\d+) of (\d+) has a 95% interval of (\d+)% to (\d+)%", PAGE)
    assert found
    right, total, low, high = map(int, found.groups())
    interval = clopper_pearson(right, total)
    assert (low, high) == (round(100 * interval.low), round(100 * interval.high))


def test_the_questions_on_the_page_are_of_all_kinds(tmp_path: Path) -> None:
    (block,) = re.findall(r"```\n(\{.*?)```", PAGE, re.DOTALL)
    (tmp_path / "own.jsonl").write_text(block, "utf-8")
    assert {question.expected.kind for question in load_questions(tmp_path / "own.jsonl")} == set(KINDS)
    for kind, keys in re.findall(r"^\| `(\w+)`(?: \(default\))? \| (`\w+`(?:, `\w+`)*) \|", PAGE, re.MULTILINE):
        assert KEYS[kind] == tuple(re.findall(r"\w+", keys))
    cases = Path(__file__).resolve().parents[1] / "evaluation" / "card" / "realistic.jsonl"
    assert f"the grading on {len(cases.read_text('utf-8').splitlines())} answers" in PAGE
