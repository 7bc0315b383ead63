"""Answers as records and as a report, and what flips between two models, with a runtime that answers by a script."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from gguf import GGUFWriter

from gguf_tools.evaluation.card.as_json import difference_dict
from gguf_tools.evaluation.card.compare import Flips, difference, flips
from gguf_tools.evaluation.card.expected import Number, Options, YesNo
from gguf_tools.evaluation.card.listing import answer_blocks, as_lines, flip_lines, records
from gguf_tools.evaluation.card.questions import Completion, Question
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.formats.gguf.header import read_header
from gguf_tools.formats.gguf.surgery import recorded_recipe
from gguf_tools.tables import Report
from tests.evaluation.card.scripted import PLAIN, QUESTIONS, Answer, Scripted, asked, card_set, perfect, scored

NAMES = {"x/a.gguf": "a.gguf", "x/b.gguf": "b.gguf"}
KINDS = [
    Question("Is a whale a fish?", YesNo(False)),
    Question("How many legs has a dog?", Number(4.0)),
    Question("Which is a metal?", Options(("wood", "iron"), 1)),
    Question("Which is wet?", Options(("milk", "sand"), 0, "letters")),
]


def told(cards: dict[str, CardReport]) -> list[str]:
    text = Report(answer_blocks(cards, NAMES)).as_text()
    return [line.strip() for line in text.splitlines() if line.strip()]


def wrong_on(*countries: str) -> Answer:
    return lambda prompt: "Lyon" if any(country in prompt for country in countries) else perfect(prompt)


def test_one_models_answers() -> None:
    def answer(prompt: str) -> str:
        said = {"whale": "Sorry, no idea.", "legs": "A dog has 5 legs.", "metal": "A or B", "wet": "B", "rain": "it."}
        return next(text for word, text in said.items() if word in prompt)

    runtime = Scripted(answer, PLAIN)
    report = scored(runtime, card_set(KINDS, [Completion("The rain falls:", ("wet",))], ()))
    assert told({"x/a.gguf": report}) == [
        "questions (scored, asked without thinking)",
        "1. Is a whale a fish? (no)",
        "wrong (read as neither yes nor no: does not decide): Sorry, no idea.",
        "2. How many legs has a dog? (4)",
        "wrong (read as 5: says something else): A dog has 5 legs.",
        "3. Which is a metal? (B) iron)",
        "wrong (offers several answers): A or B",
        "4. Which is wet? (A) milk)",
        "wrong (read as B) sand: says something else; by likelihood): B",
        "texts to continue",
        "The rain falls: …",
        "wrong (the expected word is missing): it.",
    ]


def test_two_models_stand_side_by_side() -> None:
    cards = {
        "x/a.gguf": scored(Scripted(wrong_on("Spain")), probes=0),
        "x/b.gguf": scored(Scripted(wrong_on("France", "Italy")), probes=0),
    }
    lines = told(cards)
    assert lines[1:4] == [
        "1. The capital of France? (Paris)",
        "a.gguf: right: Paris",
        "b.gguf: wrong (says something else), lost: Lyon",
    ]
    assert "b.gguf: right, gained: Madrid" in lines
    assert flip_lines(cards, NAMES) == [
        "b.gguf, compared with a.gguf: lost 2: The capital of France?; The capital of Italy?, gained 1: The capital of Spain?"
    ]
    found = difference_dict(difference("x/a.gguf", "x/b.gguf", cards))
    assert (found["lost"], found["gained"]) == (
        ["The capital of France?", "The capital of Italy?"],
        ["The capital of Spain?"],
    )


def test_held_out_answers_flip_by_themselves() -> None:
    content, rest = card_set(QUESTIONS[:2]), QUESTIONS[2:]
    cards = {
        "x/a.gguf": scored(Scripted(perfect), content, rest),
        "x/b.gguf": scored(Scripted(wrong_on("Japan")), content, rest),
    }
    assert flip_lines(cards, NAMES) == [
        "b.gguf, compared with a.gguf: the same questions are right",
        "b.gguf (held out), compared with a.gguf: lost 1: The capital of Japan?",
    ]


def test_models_that_were_asked_differently_are_not_compared() -> None:
    cards = {
        "x/a.gguf": scored(Scripted(perfect), card_set(QUESTIONS[:2])),
        "x/b.gguf": scored(Scripted(perfect), card_set(QUESTIONS[1:3])),
    }
    assert flip_lines(cards, NAMES) == []
    assert difference_dict(difference("x/a.gguf", "x/b.gguf", cards))["lost"] is None
    assert "scored: the models were asked different questions, which --answers has" in told(cards)
    assert flips([], []) is None
    same = scored(Scripted(perfect)).answers
    assert flips(same, same) == Flips((), ())


def test_a_record_for_each_question_and_mode() -> None:
    report = scored(Scripted(perfect), held_out=[Question("Is it?", YesNo(True))], probes=2)
    rows = [json.loads(line) for line in as_lines(records("x/a.gguf", report)).splitlines()]
    assert Counter((row["set"], row["mode"]) for row in rows) == {
        ("scored", "direct"): len(QUESTIONS),
        ("other mode", "thinking"): 2,
        ("held out", "direct"): 1,
    }
    assert {row["model"] for row in rows} == {"x/a.gguf"}
    first = rows[0]
    assert (first["question"], first["kind"], first["expected"], first["answer"], first["right"]) == (
        "The capital of France?",
        "free",
        "Paris",
        "Paris",
        True,
    )
    assert rows[len(QUESTIONS)]["thought"] == "Hm."


def test_control_characters_are_escaped() -> None:
    report = scored(Scripted(lambda prompt: f"\x1b[2J{asked(prompt)}\u2028", PLAIN), card_set(QUESTIONS[:1], (), ()))
    (line,) = as_lines(records("a", report)).splitlines()
    assert json.loads(line)["answer"].startswith("\x1b[2JParis")
    assert "\x1b" not in line
    assert "\x1b" not in "".join(told({"x/a.gguf": report}))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"tinyq.surgery": "swap(1:3)"}, "swap(1:3)"),
        ({"tinyq.source.recipe": 'layers = 4\nsteps = ["delete(2)", "swap(0:1)"]\n'}, "delete(2) + swap(0:1)"),
        ({"tinyq.source.recipe": 'steps = ["delete(2)"]', "tinyq.surgery": "swap(1:3)"}, "delete(2) + swap(1:3)"),
        ({"tinyq.source.recipe": "steps = ["}, None),
        ({"tinyq.source.recipe": "steps = 5"}, None),
    ],
)
def test_the_recipe_that_a_file_records(tmp_path: Path, metadata: dict[str, str], expected: str | None) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "qwen3")
    for key, text in metadata.items():
        writer.add_string(key, text)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert recorded_recipe(read_header(tmp_path / "m.gguf")) == expected
