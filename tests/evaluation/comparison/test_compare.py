"""Two runs compared item by item: against scipy, and with everything that can be wrong with the files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.statistics import holm
from gguf_tools.evaluation.comparison.paired import compare, read_run
from gguf_tools.evaluation.comparison.report import report_of
from gguf_tools.tables import View
from tests.conftest import Ran

DATE = "2026-11-27T04-13-22.845612"


def sample(number: int, **values: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"question": f"What is question {number}?", "answer": 1},
        "filter": "none",
        "metrics": list(values),
        "doc_hash": f"hash of {number}",
        "prompt_hash": f"prompt of {number}",
        **values,
    }


def write(folder: Path, task: str, rows: list[dict[str, Any]], date: str = DATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"samples_{task}_{date}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def right_or_wrong(folder: Path, task: str, right: list[bool]) -> Path:
    return write(folder, task, [sample(n, acc=float(value)) for n, value in enumerate(right)])


def results(folder: Path, **found: Any) -> Path:
    (folder / f"results_{DATE}.json").write_text(json.dumps({"results": {}, **found}))
    return folder


@pytest.fixture
def outcomes() -> tuple[list[bool], list[bool]]:
    rng = np.random.default_rng(0)
    first = rng.random(120) < 0.6
    return first.tolist(), np.where(rng.random(120) < 0.2, ~first, first).tolist()


def test_right_and_wrong_answers_by_mcnemar(tmp_path: Path, outcomes: tuple[list[bool], list[bool]]) -> None:
    a, b = outcomes
    found = compare(right_or_wrong(tmp_path / "a", "arc", a), right_or_wrong(tmp_path / "b", "arc", b))
    (one,) = found.compared
    lost, gained = (
        sum(x and not y for x, y in zip(a, b, strict=True)),
        sum(y and not x for x, y in zip(a, b, strict=True)),
    )
    assert (one.test, one.items) == ("McNemar", 120)
    assert (len(one.lost or ()), len(one.gained or ())) == (lost, gained)
    assert one.p_value == pytest.approx(scipy.stats.binomtest(lost, lost + gained).pvalue, rel=1e-12)
    assert one.corrected == one.p_value
    assert one.difference == pytest.approx(np.mean(b) - np.mean(a))
    assert one.interval.low < one.difference < one.interval.high


def test_items_are_paired_by_the_document(tmp_path: Path) -> None:
    """The order and the numbers of items do not matter; equal documents are told apart by their order."""
    rows = [sample(n, acc=float(n % 2)) for n in range(10)]
    rows[7]["doc_hash"] = rows[6]["doc_hash"]
    other = [{**row, "doc_id": 100 + row["doc_id"]} for row in rows]
    found = compare(write(tmp_path / "a", "t", rows), write(tmp_path / "b", "t", other[::-1]))
    assert [(one.items, one.lost, one.gained) for one in found.compared] == [(10, (), ())]
    assert found.compared[0].p_value == 1


def test_other_values_by_a_permutation_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    a = rng.random(14)
    b = a + rng.normal(0.1, 0.2, 14)
    runs = [
        write(tmp_path / name, "summary", [sample(n, rouge=value) for n, value in enumerate(values)])
        for name, values in (("a", a), ("b", b))
    ]
    (one,) = compare(*runs).compared
    expected = scipy.stats.permutation_test(
        (b, a),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert one.test == "permutation"
    assert one.lost is None
    assert one.p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_perplexities_are_sums_over_sums(tmp_path: Path) -> None:
    """Bits per byte of all texts together, not the mean of theirs; what says the same in other units is not tested again."""

    def rows(scale: float) -> list[dict[str, Any]]:
        return [
            sample(n, word_perplexity=[-scale * (n + 1), n + 1], byte_perplexity=[-scale * (n + 1), 5 * n + 9],
                   bits_per_byte=[-scale * (n + 1), 5 * n + 9])
            for n in range(12)
        ]  # fmt: skip

    (one,) = compare(write(tmp_path / "a", "wiki", rows(3.0)), write(tmp_path / "b", "wiki", rows(2.5))).compared
    texts = sum(range(1, 13)), sum(5 * n + 9 for n in range(12))
    assert one.metric == "bits_per_byte"
    assert one.first == pytest.approx(3.0 * texts[0] / texts[1] / math.log(2))
    assert one.p_value == pytest.approx(2 / 2**12)
    assert one.verdict == "better"  # fewer bits


def test_lower_is_better_where_the_results_say_so(tmp_path: Path) -> None:
    directions = {"t": {"rate": False}}
    rows = [[sample(n, rate=value) for n in range(12)] for value in (0.0, 1.0)]
    runs = [
        results(write(tmp_path / name, "t", row), higher_is_better=directions, model_name=name)
        for name, row in zip("ab", rows, strict=True)
    ]
    found = compare(*runs)
    assert [one.verdict for one in found.worse] == ["worse"]
    assert len(found.compared[0].lost or ()) == 12
    assert (found.first.model, found.second.model) == ("a", "b")


def test_corrected_for_the_number_of_tests(tmp_path: Path) -> None:
    """Six flips one way are a difference in one task, and none in ten."""
    a, b = [False] * 20, [n < 6 for n in range(20)]
    for number in range(10):
        right_or_wrong(tmp_path / "a", f"task{number}", a)
        right_or_wrong(tmp_path / "b", f"task{number}", b if number == 0 else a)
    whole = compare(tmp_path / "a", tmp_path / "b")
    assert [one.verdict for one in whole.compared] == ["no difference shown"] * 10
    assert whole.compared[0].corrected == pytest.approx(10 * 2 / 2**6)
    assert whole.flips == 9
    text = report_of(whole).as_text()
    assert "No difference is shown" in text
    assert "Not counted, because among 10 tests such a p is expected by chance: task0." in text
    one = compare(tmp_path / "a", tmp_path / "b", tasks=["task0"])
    assert [found.verdict for found in one.shown] == ["better"]
    assert "B is better in task0: 0.0000 → 0.3000 (p = 0.031)" in report_of(one).as_text()


def test_holm_is_the_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_report_says_what_changed_and_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = Path("a"), Path("b")
    right_or_wrong(a, "arc", [True] * 5 + [False] * 5)
    right_or_wrong(b, "arc", [False] * 2 + [True] * 8 + [True])
    right_or_wrong(a, "boolq", [True, False])
    write(a, "arc", [sample(0, acc=0.0)], date="2026-11-26T04-13-22.845612")
    found = compare(a, b)
    text = report_of(found).as_text(View(80, 80))
    assert max(map(len, text.splitlines())) <= 80
    joined = " ".join(text.split())
    assert "arc (acc): lost 2: “What is question 0?”, “What is question 1?”; gained 5: “What is question 5?”" in joined
    assert "and 2 more" in joined
    assert "arc: 1 item only in" in joined
    assert "“What is question 10?”" in joined
    assert f"only in {a}: boolq (acc)" in joined
    assert "left aside 1 older file of samples" in joined
    report = found.as_dict()
    assert report["compared"][0]["only_second"] == 1
    assert report["missing"] == [{"path": str(a), "task": "boolq", "metric": "acc"}]
    json.dumps(report, allow_nan=False)


def test_filters_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    rows = [
        {**sample(n, exact_match=float(n % 2), words=["a"]), "filter": name}
        for n in range(4)
        for name in ("strict-match", "flexible-extract")
    ]
    run = read_run(write(tmp_path / "a", "gsm", rows))
    assert sorted(name for _, name in run.metrics) == ["exact_match (flexible-extract)", "exact_match (strict-match)"]
    assert run.notes == ("gsm: words has no number for each item, and was left aside",)


def test_different_prompts_are_told(tmp_path: Path) -> None:
    rows = [sample(n, acc=1.0) for n in range(3)]
    found = compare(
        write(tmp_path / "a", "t", rows), write(tmp_path / "b", "t", [{**row, "prompt_hash": "other"} for row in rows])
    )
    assert "t: 3 of 3 items were asked in other words" in report_of(found).as_text()


def card_report(path: Path, right: list[bool], nats: float) -> Path:
    card = {
        "answers": [{"question": f"Q{n}?", "mode": "direct", "right": value} for n, value in enumerate(right)],
        "held_out_answers": [],
        "completions": [{"prompt": "Once", "coherent": True}],
        "passages": [{"nats": nats * (n + 1), "tokens": 5, "bytes": 20 * (n + 1)} for n in range(8)],
    }
    path.write_text(json.dumps({"model": {"path": path.stem}, "card": card}))
    return path


def test_reports_of_the_card_suite(tmp_path: Path) -> None:
    found = compare(
        card_report(tmp_path / "a.json", [True] * 9, 10.0), card_report(tmp_path / "b.json", [False] * 9, 11.0)
    )
    assert [(one.task, one.metric, one.verdict) for one in found.compared] == [
        ("questions", "right", "worse"),
        ("completions", "coherent", "no difference shown"),
        ("text", "bits_per_byte", "worse"),
    ]
    assert found.compared[2].first == pytest.approx(0.5 / math.log(2))
    assert found.too_small(found.compared[1])


def test_what_tinyq_eval_writes_is_read(tmp_path: Path, tinyq: Callable[..., Ran], chat: Path) -> None:
    for name in "ab":
        questions = tmp_path / "q.jsonl"
        questions.write_text('{"question": "What is 1 + 1?", "accept": ["2"]}\n')
        ran = tinyq(
            "eval", chat, "--suite", "card", "--questions", questions, "--tokens", 2, "--threads", 1, "--json",
            tmp_path / f"{name}.json",
        )  # fmt: skip
        assert ran.code == 0, ran.err
    found = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert {one.task for one in found.compared} >= {"questions", "text"}
    assert all(one.p_value == 1 for one in found.compared)


def test_two_files_may_have_any_names(tmp_path: Path) -> None:
    a = right_or_wrong(tmp_path / "a", "t", [True, False]) / f"samples_t_{DATE}.jsonl"
    b = a.rename(tmp_path / "mine.jsonl")
    a = right_or_wrong(tmp_path / "a", "t", [True, True]) / f"samples_t_{DATE}.jsonl"
    assert [(one.task, one.items) for one in compare(a, b).compared] == [("t", 2)]


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    good = right_or_wrong(folder / "good", "t", [True, False])
    text = (good / f"samples_t_{DATE}.jsonl").read_text()

    def file(name: str, content: str | bytes) -> Path:
        path = folder / name / f"samples_t_{DATE}.jsonl"
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path.parent

    (folder / "empty folder").mkdir()
    several = right_or_wrong(folder / "several" / "one", "t", [True]).parent
    right_or_wrong(several / "two", "t", [True])
    only_results = folder / "results only"
    only_results.mkdir()
    results(only_results)
    wrong = results(right_or_wrong(folder / "wrong results", "t", [True]), higher_is_better=[])
    fidelity = folder / "fidelity.json"
    fidelity.write_text(json.dumps({"model": {"path": "m"}, "fidelity": {}}))
    many = folder / "many.json"
    many.write_text(json.dumps({"models": [{}, {}]}))
    bad_card = folder / "bad.json"
    bad_card.write_text(json.dumps({"model": {}, "card": {"answers": [{"question": 3}]}}))
    return {
        "missing": (folder / "nowhere", "does not exist"),
        "empty folder": (folder / "empty folder", "has no samples_"),
        "results only": (only_results, "--log_samples"),
        "several": (several, "several models (one, two)"),
        "truncated": (file("truncated", text[:-20]), f"samples_t_{DATE}.jsonl:2: not valid JSON"),
        "not a sample": (file("list", "[1]\n"), ":1: is not a sample"),
        "no doc_id": (file("no id", '{"acc": 1}\n'), ":1: is not a sample"),
        "empty": (file("empty", ""), "has no samples"),
        "not UTF-8": (file("latin", b'{"doc_id": 0, "x": "\xe9"}\n'), "is not UTF-8"),
        "deep": (file("deep", "[" * 100_000), "nested too deeply"),
        "no metrics": (file("none", json.dumps(sample(0)) + "\n"), "no metric with a number"),
        "wrong results": (wrong, "is not a result"),
        "fidelity": (fidelity, "no report with answers"),
        "several in one": (many, "has 2 models"),
        "bad card": (bad_card, "card.answers[0]"),
        "other task": (right_or_wrong(folder / "other", "u", [True]), "no item in common: the tasks are t and u"),
        "other questions": (
            write(folder / "new", "t", [{**sample(n, acc=1.0), "doc_hash": "new"} for n in range(2)]),
            "their questions differ",
        ),
    }


BROKEN = (
    "missing",
    "empty folder",
    "results only",
    "several",
    "truncated",
    "not a sample",
    "no doc_id",
    "empty",
    "not UTF-8",
    "deep",
    "no metrics",
    "wrong results",
    "fidelity",
    "several in one",
    "bad card",
    "other task",
    "other questions",
)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_one_line(tmp_path: Path, tinyq: Callable[..., Ran], name: str) -> None:
    path, said = broken(tmp_path)[name]
    ran = tinyq("compare", tmp_path / "good", path, "--json", tmp_path / "report.json")
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "report.json").exists()


def test_the_command(tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    a = right_or_wrong(tmp_path / "a", "t", [True] * 8)
    b = right_or_wrong(tmp_path / "b", "t", [False] * 8)
    ran = tinyq("compare", a, b, "--json", tmp_path / "report.json")
    assert ran.code == 0
    assert "B is worse in t: 1.0000 → 0.0000" in ran.out
    assert json.loads((tmp_path / "report.json").read_text())["compared"][0]["verdict"] == "worse"
    failed = tinyq("compare", a, b, "--fail-if-worse")
    assert failed.code == 1
    assert "worse than" in failed.err
    assert tinyq("compare", b, a, "--fail-if-worse").code == 0
    assert tinyq("compare", a / f"samples_t_{DATE}.jsonl", b).code == 0
    for option, value in (("--task", "u"), ("--metric", "f1")):
        unknown = tinyq("compare", a, b, option, value)
        assert (unknown.code, "in either run; expected one of" in unknown.err) == (2, True)
    over = tinyq("compare", a, b, "--json", a / f"samples_t_{DATE}.jsonl", "--force")
    assert over.code == 2
    assert (a / f"samples_t_{DATE}.jsonl").read_text().count("\n") == 8


def test_the_same_model_twice_shows_nothing(tmp_path: Path) -> None:
    a = right_or_wrong(tmp_path / "a", "t", [True, False] * 8)
    found = compare(a, a)
    assert not found.shown
    interval = found.compared[0].interval
    assert interval.low < -0.1 < 0.1 < interval.high  # 16 equal answers do not say that the 17th is equal too
    with pytest.raises(InputError, match="no task"):
        compare(a, a, tasks=["x"])
