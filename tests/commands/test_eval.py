"""`tinyq eval` as its users see it, on the bundled model: the score that quantizing keeps and surgery lowers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gguf_tools import __version__
from gguf_tools.bundled import FACTS, bundled_model
from gguf_tools.cli import run
from gguf_tools.evaluation.card.questions import load_questions
from gguf_tools.evaluation.card.report import CARD_COLUMNS, DIFFERENCE_COLUMNS, HELD_OUT_COLUMNS
from gguf_tools.tables import MISSING, Column
from tests.conftest import Ran

Tinyq = Callable[..., Ran]
BUNDLED = ("--suite", "card", "--questions", "bundled")
SURGERIES = {
    "deleted": ("--delete", "4"),
    "beheaded": ("--delete", "0"),
    "reversed": ("--reverse", "0..5"),
    "swapped": ("--swap", "0:1"),
    "cut": ("--delete", "2..3"),
}
TYPES = ("q8_0", "f16", "f32")


@dataclass(frozen=True)
class Outputs:
    """A run's stdout and its three files."""

    text: str
    json: Path
    csv: Path
    markdown: Path

    def report(self) -> dict[str, Any]:
        """The JSON."""
        found: dict[str, Any] = json.loads(self.json.read_text("utf-8"))
        return found


def quietly(*args: object) -> str:
    """Stdout of a run that must go well and say nothing else."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([*map(str, args), "--wide"])
    assert (code, err.getvalue()) == (0, "")
    return out.getvalue()


def evaluated(folder: Path, *args: object) -> Outputs:
    """A run that writes all it can."""
    json_path, csv_path, markdown = (folder / f"out.{end}" for end in ("json", "csv", "md"))
    text = quietly("eval", *args, "--json", json_path, "--csv", csv_path, "--markdown", markdown)
    return Outputs(text, json_path, csv_path, markdown)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled hybrid in three types, and in F16 after several surgeries."""
    folder = tmp_path_factory.mktemp("models")
    for name in TYPES:
        quietly("convert", bundled_model("hybrid"), folder / f"{name}.gguf", "--type", name, "-q")
    for name, options in SURGERIES.items():
        quietly("convert", bundled_model("hybrid"), folder / f"{name}.gguf", "--type", "f16", "-q", *options)
    return folder


@pytest.fixture(scope="session")
def all_models(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """All of them side by side, the worst ones first on the command line."""
    files = [models / f"{name}.gguf" for name in (*SURGERIES, *TYPES)]
    return evaluated(tmp_path_factory.mktemp("all"), *files, *BUNDLED)


@pytest.fixture(scope="session")
def pairs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Outputs]:
    """The same command twice, with held-out questions."""
    files = models / "deleted.gguf", models / "f16.gguf"
    folders = [tmp_path_factory.mktemp("pair") for _ in range(2)]
    return [evaluated(folder, *files, *BUNDLED, "--held-out", "rest") for folder in folders]


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name → its card."""
    return {Path(model["model"]["path"]).stem: model["card"] for model in report["models"]}


def between(report: dict[str, Any], first: str, second: str) -> dict[str, Any]:
    """The difference of two files, whichever comes first."""
    for found in report["differences"]:
        if {Path(found[side]).stem for side in ("first", "second")} == {first, second}:
            return dict(found)
    raise AssertionError(f"{first} and {second} are not compared")


# What the score is worth


def test_types_that_lose_nothing_score_the_same(all_models: Outputs) -> None:
    cards = by_name(all_models.report())
    assert cards["f32"]["score"] == cards["f16"]["score"] == round(cards["f32"]["score"], 2)
    assert cards["f32"]["score"] > 60
    assert cards["f32"]["answers"] == cards["f16"]["answers"]
    assert between(all_models.report(), "f32", "f16")["verdict"] == "no significant difference"


def test_q8_0_scores_within_the_interval(all_models: Outputs) -> None:
    cards = by_name(all_models.report())
    low, high = cards["f32"]["interval"]
    assert low <= cards["q8_0"]["score"] <= high
    assert 0 <= low < cards["f32"]["score"] < high <= 100
    assert between(all_models.report(), "f32", "q8_0")["verdict"] == "no significant difference"


@pytest.mark.parametrize("name", SURGERIES)
def test_surgery_lowers_the_score(all_models: Outputs, name: str) -> None:
    report = all_models.report()
    cards = by_name(report)
    assert cards[name]["score"] < cards["f16"]["interval"][0]
    assert cards[name]["interval"][1] < cards["f16"]["score"]
    found = between(report, "f16", name)
    assert Path(found["second"]).stem == name
    assert found["verdict"].startswith("scores lower, fewer facts right")
    assert found["score"]["shown"]
    assert found["facts"]["shown"]
    assert found["facts"]["p_value"] < 0.01


def test_every_part_is_measured_with_its_interval(all_models: Outputs) -> None:
    for card in by_name(all_models.report()).values():
        parts = card["parts"]
        assert list(parts) == ["facts", "completion", "perplexity", "repetition", "thinking", "non_thinking"]
        assert [part["weight"] for part in parts.values()] == [40, 15, 15, 10, 10, 10]
        for part in parts.values():
            low, high = part["interval"]
            value = next(part[key] for key in ("share", "perplexity", "repeated_share") if key in part)
            assert low <= value <= high
        assert (parts["facts"]["total"], parts["completion"]["total"], len(card["answers"])) == (17, 2, 21)
        mean = sum(part["weight"] * part["score"] for part in parts.values()) / 100
        assert card["score"] == pytest.approx(mean, abs=0.005 + 1e-9)


def test_two_runs_are_the_same_to_the_digit(pairs: list[Outputs], all_models: Outputs) -> None:
    for kind in ("json", "csv", "markdown"):
        first, second = (getattr(outputs, kind).read_bytes() for outputs in pairs)
        assert first == second
    assert pairs[0].text == pairs[1].text
    alone, among = by_name(pairs[0].report()), by_name(all_models.report())
    for name in ("f16", "deleted"):
        changed = {"held_out", "held_out_answers", "notes"}
        assert {k: v for k, v in alone[name].items() if k not in changed} == {
            k: v for k, v in among[name].items() if k not in changed
        }


def test_held_out_questions_confirm(pairs: list[Outputs]) -> None:
    report = pairs[0].report()
    cards = by_name(report)
    for card in cards.values():
        asked = {item["question"] for item in card["answers"]}
        others = [item["question"] for item in card["held_out_answers"]]
        assert len(others) == len(set(others)) == card["held_out"]["total"] == len(load_questions(FACTS)) - 17
        assert asked.isdisjoint(others)
    assert cards["f16"]["held_out"]["right"] > cards["deleted"]["held_out"]["right"]
    (found,) = report["differences"]
    assert found["held_out"]["shown"]
    assert found["verdict"].startswith("scores lower, fewer facts right, fewer held-out facts right")
    assert "--held-out rest asks others" not in pairs[0].text
    assert "held out" in pairs[0].text


# Side by side


def heads(columns: Sequence[Column]) -> list[str]:
    return [column.head for column in columns]


def table_under(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first` and which has the columns asked for."""
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("file ") and first in line)
    rule = lines[at + 1]
    starts = [n for n in range(len(rule)) if rule[n] == "─" and (n == 0 or rule[n - 1] == " ")]
    ends = [*starts[1:], None]
    rows = [lines[at]]
    for line in lines[at + 2 :]:
        if not line:
            break
        rows.append(line)
    return [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in rows]


def test_files_stand_best_first_everywhere(all_models: Outputs) -> None:
    report = all_models.report()
    names = [Path(model["model"]["path"]).name for model in report["models"]]
    scores = [model["card"]["score"] for model in report["models"]]
    assert scores == sorted(scores, reverse=True)
    head, *rows = table_under(all_models.text, "score ")
    assert head == ["file", "surgery", "size", "bits/weight", *heads(CARD_COLUMNS)]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == [model["model"]["recipe"] or MISSING for model in report["models"]]
    assert [row[4] for row in rows] == [f"{score:.2f}" for score in scores]
    lines = [line for line in all_models.markdown.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == head
    assert cells[2 : 2 + len(names)] == rows
    parsed = list(csv.DictReader(io.StringIO(all_models.csv.read_text("utf-8"))))
    assert [Path(row["path"]).name for row in parsed] == names
    assert [float(row["card.score"]) for row in parsed] == scores
    for row, model in zip(parsed, report["models"], strict=True):
        parts = model["card"]["parts"]
        assert float(row["card.perplexity.perplexity"]) == parts["perplexity"]["perplexity"]
        assert [float(row["card.facts.low"]), float(row["card.facts.high"])] == parts["facts"]["interval"]
        assert int(row["card.thinking.right"]) == parts["thinking"]["right"]


def test_every_two_are_compared(all_models: Outputs) -> None:
    report = all_models.report()
    names = [model["model"]["path"] for model in report["models"]]
    pairs = [(found["first"], found["second"]) for found in report["differences"]]
    assert pairs == [(one, two) for n, one in enumerate(names) for two in names[n + 1 :]]
    head, *rows = table_under(all_models.text, "verdict")
    assert head == ["file", *(name for name in heads(DIFFERENCE_COLUMNS) if name != "held out")]
    assert [row[0] for row in rows] == [Path(name).name for name in names[1:]]
    assert [row[-1] for row in rows] == [found["verdict"] for found in report["differences"][: len(names) - 1]]
    assert rows[0][-1] == "no significant difference"
    assert f"compared with the best, {Path(names[0]).name}, " in all_models.text
    assert "--held-out rest asks others" in all_models.text
    for found in report["differences"][: len(names) - 1]:
        told = f"{Path(found['second']).name}, compared with {Path(names[0]).name}: "
        said = next(line for line in all_models.text.splitlines() if line.startswith(told)).removeprefix(told)
        flipped = [f"{verb} {len(found[verb])}: {'; '.join(found[verb])}" for verb in ("lost", "gained") if found[verb]]
        assert said == (", ".join(flipped) or "the same questions are right")
        assert len(found["gained"]) - len(found["lost"]) == found["facts"]["second_only"] - found["facts"]["first_only"]


def test_notes_name_the_file(all_models: Outputs) -> None:
    for name, card in by_name(all_models.report()).items():
        shown = [line for line in all_models.text.splitlines() if line.startswith(f"note: {name}.gguf: ")]
        assert shown == [f"note: {name}.gguf: {note}" for note in card["notes"]]
    assert any("an endless loop" in note for note in by_name(all_models.report())["beheaded"]["notes"])


def test_held_out_has_columns(pairs: list[Outputs]) -> None:
    head, *rows = table_under(pairs[0].text, "score ")
    assert head[-2:] == heads(HELD_OUT_COLUMNS)
    assert [row[-2].endswith("/44") for row in rows] == [True, True]


# One file, and other suites


def test_one_file_is_told_in_lines(tinyq: Tinyq, plain: Path, question: Path) -> None:
    ran = tinyq("eval", plain, "--suite", "card", "--questions", question, "--weight", "facts=50")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"{plain}: qwen3, ")
    assert lines[2].startswith("score ")
    assert lines[3] == f"1 question of the set {question}, asked as plain text"
    facts = next(line for line in lines if line.startswith("facts "))
    assert facts.split()[1:3] == ["50", "0.0"]
    assert "not measured: the model has no chat template" in ran.out
    assert "note: the model has no chat template: the questions were asked as plain text" in ran.out


def test_a_score_too_low_is_exit_1(tinyq: Tinyq, plain: Path, question: Path, tmp_path: Path) -> None:
    command = ("eval", plain, "--suite", "card", "--questions", question, "--json", tmp_path / "out.json")
    assert tinyq(*command, "--min-score", "0").code == 0
    ran = tinyq(*command, "--min-score", "99.5", "--force")
    score = json.loads((tmp_path / "out.json").read_text("utf-8"))["card"]["score"]
    assert ran.code == 1
    assert ran.err == f"tinyq: {plain}: the card's score is {score:.2f}; expected at least 99.5\n"
    assert "facts " in ran.out, "what was measured is shown all the same"


@pytest.mark.parametrize(("option", "start"), [("--json", "{\n"), ("--csv", "path,"), ("--markdown", "| file |")])
def test_stdout_has_only_what_goes_there(tinyq: Tinyq, plain: Path, question: Path, option: str, start: str) -> None:
    ran = tinyq("eval", plain, "--suite", "card", "--questions", question, option, "-")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(start)
    assert "asked as plain text" not in ran.out.partition('"notes"')[0]
    if option == "--json":
        assert list(json.loads(ran.out)) == ["model", "engine", "card"]


def test_answers_are_shown_and_written(tinyq: Tinyq, plain: Path, question: Path, tmp_path: Path) -> None:
    command = ("eval", plain, "--suite", "card", "--questions", question, "--tokens", "4")
    ran = tinyq(*command, "--answers", tmp_path / "a.jsonl", "--show-answers")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text("utf-8").splitlines()]
    (asked,) = load_questions(question)
    assert [(row["model"], row["question"], row["set"]) for row in rows] == [(str(plain), asked.question, "scored")]
    assert ran.code == 0
    assert f"1. {asked.question} ({asked.expected.text})" in ran.out
    assert ran.out.index("score ") < ran.out.index("\n\nquestions (scored")
    assert tinyq(*command, "--quiet", "--show-answers").out == ran.out[ran.out.index("questions (scored") :]
    ran = tinyq(*command, "--answers", "-", "--show-answers")
    assert [json.loads(line) for line in ran.out.splitlines()] == rows
    before = (tmp_path / "a.jsonl").read_bytes()
    ran = tinyq(*command, "--answers", tmp_path / "a.jsonl")
    assert (ran.code, ran.out) == (2, "")
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_all_suites_on_one_file(tinyq: Tinyq, models: Path, question: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\nThe sea\n", "utf-8")
    out = tmp_path / "out.json"
    options = ("--questions", question, "--prompts", prompts, "--tokens", "8", "--json", out)
    ran = tinyq("eval", models / "f16.gguf", "--suite", "all", *options)
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(out.read_text("utf-8"))
    assert list(report) == ["model", "engine", "reference", "fidelity", "speed", "card"]
    assert report["fidelity"]["n_prompts"] == 2
    assert report["fidelity"]["top1_agreement"] == 1
    assert report["speed"]["generate_tok_s"] > 0
    assert len(report["card"]["answers"]) == 2, "in both modes"
    for told in ("KL divergence", "tok/s", "score ", "non-thinking"):
        assert told in ran.out


def test_what_was_measured_with_what_is_recorded(tinyq: Tinyq, plain: Path, question: Path, tmp_path: Path) -> None:
    """The settings, the versions, and digests of what was asked and read; the defaults are the most exact settings."""
    text = tmp_path / "text.txt"
    text.write_text("It rains.\n\nThe sun is out.\n")
    common = ("eval", plain, "--suite", "card", "--questions", question, "--tokens", "4", "--json", "-")
    first = json.loads(tinyq(*common, "--threads", "1").out)
    settings = ("--kv-type", "f16", "--flash-attn", "--threads", "2", "--context", "128", "--text", text)
    second = json.loads(tinyq(*common, *settings).out)
    assert first["engine"] | {"context": 0} == {
        "kv_type": "f32",
        "flash_attn": False,
        "gpu_layers": 0,
        "threads": 1,
        "context": 0,
        "sampling": "greedy",
        "llama_cpp": first["engine"]["llama_cpp"],
        "llama_cpp_python": version("llama-cpp-python"),
        "gguf": version("gguf"),
        "tinyq": __version__,
    }
    assert re.match(r"\d", first["engine"]["llama_cpp"])
    changed = {"kv_type": "f16", "flash_attn": True, "threads": 2, "context": 128}
    assert second["engine"] == first["engine"] | changed
    one, other = first["card"]["digests"], second["card"]["digests"]
    assert {name for name in one if one[name] == other[name]} == {"questions", "completions"}
    assert other["text"] == hashlib.sha256(b'["It rains.", "The sun is out."]').hexdigest()
    asked = [asdict(item) for item in load_questions(question)]
    assert one["questions"] == hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    assert first["card"]["tokens"] == {"answer": 128, "think": 1024, "completion": 4}


def test_a_requantized_file_is_called_so(tinyq: Tinyq, models: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.gguf"
    quietly("quantize", models / "q8_0.gguf", again, "q4_0", "--allow-requantize", "-q")
    ran = tinyq("eval", again, "--no-speed", "--tokens", "1", "--oracle", "none", "--json", tmp_path / "out.json")
    assert f"{again}: qwen3next, q4_0 (requantized from q8_0), " in ran.out
    report = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert report["model"]["requantized_from"] == "q8_0"
    assert set(report["fidelity"]["digests"]) == {"prompts", "text"}
    assert report["engine"]["sampling"] == "greedy"


def test_fidelity_of_two_files(tinyq: Tinyq, models: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Once upon a time\n", "utf-8")
    out = tmp_path / "out.json"
    files = (models / "q8_0.gguf", models / "f16.gguf")
    ran = tinyq(
        "eval", *files, "--prompts", prompts, "--tokens", "8", "--no-speed", "--json", out, "--max-kl", "1", "--wide"
    )
    assert (ran.code, ran.err) == (0, "")
    report = json.loads(out.read_text("utf-8"))
    assert [Path(model["model"]["path"]).name for model in report["models"]] == ["f16.gguf", "q8_0.gguf"]
    assert [list(model) for model in report["models"]] == [["model", "engine", "reference", "fidelity", "speed"]] * 2
    first, second = (model["fidelity"]["kl_mean"] for model in report["models"])
    assert first < second / 10
    assert report["differences"] == []
    head, *rows = table_under(ran.out, "KL mean")
    assert [row[0] for row in rows] == ["f16.gguf", "q8_0.gguf"]
    assert head[3:5] == ["NMSE", "KL mean"]
    assert "note: q8_0.gguf: compared with the source recorded in the file" in ran.out
