"""The speed as an objective, llama.cpp's options in a search, and how often a surgery is planned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from surgery.gguf.layers import LayeredFile
from surgery.gguf.rewrite import GGUFPlan, plan_gguf, write_plan
from surgery.recipe import Recipe
from surgery.search import bench
from surgery.search.ledger import Ledger
from surgery.search.objective import dominates, parse_objectives, ranked
from surgery.search.records import QUESTIONS, SPEED, Entry, Measured, Record
from surgery.search.storage import storage_url
from tests.conftest import Ran
from tests.surgery.search.search_files import search_line

pytest.importorskip("optuna")
Tinyq = Callable[..., Ran]
POINT = st.integers(0, 3).map(lambda n: (float(n), float(n)))
SPAN = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda pair: (float(min(pair)), float(max(pair))))
LOSSES = st.lists(st.tuples(POINT, POINT, SPAN), min_size=1, max_size=12)


def test_speeds_are_measured_beside_the_base_and_each_surgery_is_planned_once(
    tmp_path: Path, tinyq: Tinyq, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: Counter[str] = Counter()
    written: Counter[str] = Counter()

    def plan(file: LayeredFile, recipe: Recipe) -> GGUFPlan:
        planned[str(recipe)] += 1
        return plan_gguf(file, recipe)

    def write(made: GGUFPlan, *args: Any, **options: Any) -> object:
        written[str(made.recipe)] += 1
        return write_plan(made, *args, **options)

    monkeypatch.setattr(bench, "plan_gguf", plan)
    monkeypatch.setattr(bench, "write_plan", write)
    database = tmp_path / "s.db"
    line = search_line(tmp_path, "--strategy", "single", "--allow", "delete", "--storage", database)
    line += ["--objective", "speed", "--kv-type", "f16", "--no-pruning", "--rival", "q8_0"]
    ran = tinyq(*line, "--json", tmp_path / "r.json", "--wide")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert found["objectives"] == ["perplexity", "speed"]
    assert found["setup"]["engine"] == {"kv_type": "f16", "flash_attn": False, "gpu_layers": 0}
    for one in (found["base"], *found["rivals"], *found["trials"]):
        speed = one["stages"]["speed"]
        assert 0 < speed["low"] <= one["values"]["speed"] == speed["speed"] <= speed["high"]
        assert speed["tok_s"] > 0 < speed["base_tok_s"]
        assert f"{speed['low']:.2f}–{speed['high']:.2f}" in ran.out
    # One plan says whether a surgery is possible and how large its file is; a file that llama.cpp runs needs one more.
    recipes = {trial["recipe"] for trial in found["trials"]}
    assert recipes == {f"delete({n})" for n in range(4)}
    assert {recipe: planned[recipe] - written[recipe] for recipe in recipes} == dict.fromkeys(recipes, 1)

    other = tinyq(*line[:-5], "--no-pruning", "--rival", "q8_0")
    assert other.code == 2
    assert "was begun with engine {'kv_type': 'f16'" in other.err
    ledger = Ledger.open(storage_url(str(database)), None)
    assert all(SPEED in record.results for record in ledger.records())


def test_llama_cpps_options_are_checked_before_anything_is_written(tmp_path: Path, tinyq: Tinyq) -> None:
    ran = tinyq(*search_line(tmp_path, "--kv-type", "q8_0", "--storage", tmp_path / "s.db"))
    assert ran.code == 2
    assert ran.err == "tinyq: cache type q8_0 needs flash attention in llama.cpp; turn flash attention on\n"
    assert not (tmp_path / "s.db").exists()


def test_the_speed_is_no_first_objective() -> None:
    for texts in (("speed",), ("speed", "card")):
        with pytest.raises(InputError, match="a model without layers is the fastest"):
            parse_objectives(texts)
    assert [objective.name for objective in parse_objectives(("card", "speed", "card"))] == ["card", "speed"]


def record(number: int, score: float, speed: tuple[float, float]) -> Record:
    results = {
        QUESTIONS: Measured(np.array([-score]), {"score": score}),
        SPEED: Measured(np.array([-sum(speed) / 2]), {"speed": sum(speed) / 2, "low": speed[0], "high": speed[1]}),
    }
    entry = Entry(recipe=f"delete({number})", key=str(number), place=number)
    return Record(entry=entry, number=number, trial_id=number, state="complete", results=results)


def test_only_a_speed_that_is_faster_beyond_the_noise_counts() -> None:
    objectives = parse_objectives(("card", "speed"))
    records = [
        record(0, 80.0, (0.9, 1.1)),
        record(1, 79.0, (1.0, 1.2)),  # worse, and not faster beyond the noise: behind the first
        record(2, 70.0, (1.3, 1.5)),  # much worse, but faster
    ]
    assert [one.number for one in ranked(records, objectives)] == [0, 2, 1]


@given(losses=LOSSES)
def test_dominance_has_no_circle(losses: list[list[tuple[float, float]]]) -> None:
    """So that every set has a front, though "equal within the noise" is not transitive."""
    left = list(range(len(losses)))
    while left:
        front = [a for a in left if not any(dominates(losses[b], losses[a]) for b in left)]
        assert front
        left = [n for n in left if n not in front]
