"""What the card suite asks: files of questions, the choice of a set, and what is held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.expected import Expected, Free, Number, Options, YesNo
from gguf_tools.evaluation.card.questions import (
    SET_SIZE,
    SETS,
    Question,
    choose,
    load_completions,
    load_questions,
    split_passages,
)


def written(folder: Path, rows: list[Any], name: str = "own.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def asked(*topics: str, start: int = 0) -> list[dict[str, Any]]:
    """A question for each topic, its number in its text."""
    return [{"question": f"Q{n}?", "accept": [f"a{n}"], "topic": topic} for n, topic in enumerate(topics, start)]


def names(questions: tuple[Question, ...]) -> str:
    return " ".join(question.question.strip("Q?") for question in questions)


# Files


def test_a_question_is_read_as_it_stands(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        [
            {"question": " Où?  ", "accept": ["là", "ici "], "system": "Réponds.", "topic": "t"},
            "",
            {"question": "2?", "accept": ["2"], "system": None},
        ],
    )
    assert load_questions(path) == (
        Question(" Où?  ", Free(("là", "ici ")), "Réponds.", "t"),
        Question("2?", Free(("2",))),
    )


GOOD = {"question": "Q?", "accept": ["a"]}
NUMBER = {"kind": "number", "question": "How far?", "answer": 12}
CHOICE = {"kind": "choice", "question": "Which is a metal?", "options": ["iron", "wood"], "answer": "A"}
FAULTS: dict[str, tuple[Any, str]] = {
    "no JSON": ("Q? a", "is not JSON"),
    "a list": ([GOOD], "is a list; expected an object such as"),
    "another key": (
        {**GOOD, "answr": "a"},
        "key 'answr' is not known; expected question, kind, accept, answer, unit, tolerance, options, by, system, topic",
    ),
    "another kind": ({**GOOD, "kind": "open"}, "kind is 'open'; expected one of free, yesno, number, choice"),
    "a key of another kind": (
        {**GOOD, "answer": "a"},
        "answer belongs to questions of kind yesno or number or choice, and this one is of kind free; expected a line such as {",
    ),
    "no yes or no": ({"kind": "yesno", "question": "Q?", "answer": "maybe"}, "answer is 'maybe'; expected yes or no"),
    "no number": ({"kind": "number", "question": "Q?", "answer": "12"}, "answer is '12'; expected a number, as in {"),
    "true for a number": ({"kind": "number", "question": "Q?", "answer": True}, "answer is True; expected a number"),
    "a huge number": ('{"kind": "number", "question": "Q?", "answer": 1e999}', "answer is inf; expected a number"),
    "a unit of another type": ({**NUMBER, "unit": 5}, "unit is 5; expected text such as km"),
    "a negative tolerance": ({**NUMBER, "tolerance": -1}, "tolerance is -1; expected a number of at least 0"),
    "a tolerance in words": ({**NUMBER, "tolerance": "x%"}, "tolerance is 'x%'; expected a number of at least 0"),
    "one option": ({**CHOICE, "options": ["iron"]}, "has 1 options; expected 2 to 26"),
    "no list of options": ({**CHOICE, "options": "iron"}, "options is 'iron'; expected a list of options"),
    "an option without a word": ({**CHOICE, "options": ["iron", "!"]}, "the option '!' has no letters or digits"),
    "an option twice": ({**CHOICE, "options": ["iron", "Iron."]}, "the option 'Iron.' occurs twice"),
    "an option that is a letter": (
        {**CHOICE, "options": ["B", "C"]},
        "the option 'B' is also the letter of another option",
    ),
    "an answer that is no option": (
        {**CHOICE, "answer": "C"},
        "answer is 'C'; expected one of the options, or its letter (A to B)",
    ),
    "no answer to a choice": ({**CHOICE, "answer": None}, "answer is None; expected one of the options"),
    "read by another means": ({**CHOICE, "by": "sound"}, "by is 'sound'; expected one of text, letters, options"),
    "no question": ({"accept": ["a"]}, "question is None; expected text, as in {"),
    "a blank question": ({**GOOD, "question": " \n"}, "question is ' \\n'; expected text"),
    "a question of another kind": ({**GOOD, "question": 5}, "question is 5; expected text"),
    "no answers": ({"question": "Q?"}, "accept is None; expected a list of accepted answers"),
    "an empty list": ({**GOOD, "accept": []}, "accept is []; expected a list"),
    "text for a list": ({**GOOD, "accept": "Paris"}, "accept is 'Paris'; expected a list"),
    "an answer of another kind": ({**GOOD, "accept": ["4", 4]}, "accept is ['4', 4]; expected a list"),
    "an answer without a word": ({**GOOD, "accept": ["a", "?!"]}, "the accepted answer '?!' has no letters or digits"),
    "a system prompt of another kind": ({**GOOD, "system": ["x"]}, "system is ['x']; expected text"),
    "a topic of another kind": ({**GOOD, "topic": 1}, "topic is 1; expected text"),
    "the same again": ({**GOOD, "question": "first?"}, "the question 'first?' occurs twice"),
    "an escaped lone surrogate": (r'{"question": "\udc00", "accept": ["a"]}', "has an escaped lone surrogate"),
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"accept": ["a", "b"]}, Free(("a", "b"))),
        ({"kind": "free", "accept": ["a"]}, Free(("a",))),
        ({"kind": "yesno", "answer": "Yes"}, YesNo(True)),
        ({"kind": "yesno", "answer": False}, YesNo(False)),
        ({"kind": "number", "answer": 12}, Number(12.0)),
        ({"kind": "number", "answer": 200, "unit": "Kilometres", "tolerance": "5%"}, Number(200.0, "km", 10.0)),
        ({"kind": "number", "answer": -40.5, "unit": "legs", "tolerance": 0.5}, Number(-40.5, "legs", 0.5)),
        ({"kind": "choice", "options": ["iron", "wood"], "answer": "B"}, Options(("iron", "wood"), 1)),
        ({"kind": "choice", "options": ["iron", "wood"], "answer": "wood"}, Options(("iron", "wood"), 1)),
        ({"kind": "choice", "options": ["A", "B"], "answer": "B", "by": "letters"}, Options(("A", "B"), 1, "letters")),
    ],
)
def test_the_kinds_of_question(tmp_path: Path, row: dict[str, Any], expected: Expected) -> None:
    (question,) = load_questions(written(tmp_path, [{"question": "Q?", **row}]))
    assert question.expected == expected


def test_a_choice_is_asked_with_its_options_unless_their_likelihood_decides() -> None:
    options = ("iron", "wood")
    assert Question("Which?", Options(options, 0)).asked == "Which?\nA) iron\nB) wood"
    assert Question("Which?", Options(options, 0, "letters")).asked == "Which?\nA) iron\nB) wood"
    assert Question("Which?", Options(options, 0, "options")).asked == "Which?"


@pytest.mark.parametrize(("row", "expected"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_names_file_and_line(tmp_path: Path, row: Any, expected: str) -> None:
    path = written(tmp_path, [{"question": "first?", "accept": ["a"]}, "", row])
    with pytest.raises(InputError) as found:
        choose(str(path))
    assert str(found.value).startswith(f"{path}:3: {expected}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "k" * 10_000: 1},
        {**GOOD, "system": [1] * 10_000},
        {**GOOD, "accept": "b" * 10_000},
        {**GOOD, "accept": ["!" * 10_000]},
        {"question": [1] * 10_000, "accept": ["a"]},
    ],
)
def test_a_huge_fault_is_shown_in_part(tmp_path: Path, row: Any) -> None:
    path = written(tmp_path, [row])
    with pytest.raises(InputError, match="…") as found:
        choose(str(path))
    assert len(str(found.value)) < len(str(path)) + 300


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"own\.jsonl: has no questions; expected one per line, such as \{"):
        load_questions(written(tmp_path, ["", " "]))
    with pytest.raises(InputError, match="gone: is neither a question set \\(general, bundled\\) nor a file"):
        choose(str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        choose(str(tmp_path))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "One, two,"}, "accept is None"),
        ({"prompt": "", "accept": ["x"]}, "prompt is ''"),
        ({"question": "Q?", "accept": ["x"]}, "key 'question' is not known; expected prompt, accept"),
    ],
)
def test_a_fault_of_a_completion_names_file_and_line(tmp_path: Path, row: Any, expected: str) -> None:
    path = written(tmp_path, [{"prompt": "A", "accept": ["b"]}, row])
    with pytest.raises(InputError) as found:
        load_completions(path)
    assert str(found.value).startswith(f"{path}:2: {expected}")


# Sets


@pytest.mark.parametrize("name", list(SETS))
def test_the_sets_that_ship(name: str) -> None:
    once, twice = choose(name).scored, choose(name, 2).scored
    assert (len(once.questions), len(once.completions)) == (SET_SIZE, 2) == (17, 2)
    assert (len(twice.questions), len(twice.completions)) == (34, 4)
    assert twice.questions[:SET_SIZE] == once.questions, "a larger set must go on from the smaller one"
    assert twice.passages == once.passages
    assert choose(name) == choose(name)


def test_topics_take_turns(tmp_path: Path) -> None:
    path = written(tmp_path, asked("b", "b", "b", "a", "b", "c", "a"))
    assert names(choose(str(path)).scored.questions) == "0 3 5 1 6 2 4"
    assert names(choose(str(written(tmp_path, asked(*[""] * 5)))).scored.questions) == "0 1 2 3 4"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=17))
def test_turns_lose_no_question(tmp_path_factory: pytest.TempPathFactory, topics: list[str]) -> None:
    path = written(tmp_path_factory.mktemp("turns"), asked(*topics))
    found = choose(str(path)).scored.questions
    assert sorted(map(int, names(found).split())) == list(range(len(topics)))
    for topic in set(topics):
        own = [int(q.question.strip("Q?")) for q in found if q.topic == topic]
        assert own == sorted(own)
    # After each whole turn, no topic is more than one ahead of another that has questions left.
    for count in range(len(found)):
        taken = {topic: sum(q.topic == topic for q in found[:count]) for topic in set(topics)}
        left = [topic for topic in taken if taken[topic] < topics.count(topic)]
        assert all(max(taken.values()) - taken[topic] <= 1 for topic in left)


def test_own_questions_come_with_the_general_texts(tmp_path: Path) -> None:
    own, general = choose(str(written(tmp_path, asked(*"ab")))).scored, choose("general").scored
    assert (own.completions, own.passages) == (general.completions, general.passages)
    assert own.name == str(tmp_path / "own.jsonl")


def test_as_many_sets_as_there_are(tmp_path: Path) -> None:
    """A short file is one set; more sets must be whole."""
    short = str(written(tmp_path, asked(*"a" * 5), "short"))
    assert len(choose(short).scored.questions) == 5
    with pytest.raises(InputError, match="short: has 5 questions, but 2 sets of 17 need 34; give at most 1"):
        choose(short, 2)
    long = str(written(tmp_path, asked(*"a" * 40), "long"))
    assert len(choose(long).scored.questions) == 17
    assert len(choose(long, 2).scored.questions) == 34
    with pytest.raises(InputError, match="long: has 40 questions, but 3 sets of 17 need 51; give at most 2"):
        choose(long, 3)


# Held out


def test_nothing_is_held_out_unless_asked() -> None:
    assert choose("general").held_out == ()


@pytest.mark.parametrize("sets", [1, 2])
def test_the_rest_is_what_the_score_leaves(sets: int) -> None:
    found = choose("bundled", sets, "rest")
    whole = load_questions(SETS["bundled"][0])
    assert set(found.scored.questions) | set(found.held_out) == set(whole)
    assert len(found.scored.questions) + len(found.held_out) == len(whole)
    assert found.scored == choose("bundled", sets).scored, "what is held out must not change the score"


def test_no_rest_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, asked(*"a" * 17))
    with pytest.raises(InputError, match=r"own\.jsonl: no question is left to hold out"):
        choose(str(path), held_out="rest")


def test_another_file_is_held_out_whole(tmp_path: Path) -> None:
    other = written(tmp_path, asked(*"aabb", start=50), "other.jsonl")
    assert names(choose("general", held_out=str(other)).held_out) == "50 52 51 53"


def test_what_is_scored_is_not_held_out(tmp_path: Path) -> None:
    own = str(written(tmp_path, asked(*"a" * 18)))
    shared = str(written(tmp_path, asked(*"a" * 3, start=16), "shared.jsonl"))
    assert names(choose(own, held_out=shared).held_out) == "17 18"
    assert choose("general", held_out="general") == choose("general", held_out="rest")
    known = str(written(tmp_path, asked("a", start=16), "known.jsonl"))
    with pytest.raises(InputError, match=r"known\.jsonl: no question is left to hold out"):
        choose(own, held_out=known)
    with pytest.raises(InputError, match="is neither a question set"):
        choose("general", held_out=str(tmp_path / "gone"))


# The text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", ("one",)),
        ("one\ntwo\n\nthree", ("one\ntwo", "three")),
        ("\n\none  \n \t\n\n\n\ntwo\r\n\r\n three\n", ("one", "two", " three")),
    ],
)
def test_blank_lines_part_passages(text: str, expected: tuple[str, ...]) -> None:
    assert split_passages(text, "t") == expected


@given(st.lists(st.text("ab \n", min_size=1), max_size=6))
def test_passages_keep_every_word(parts: list[str]) -> None:
    text = "\n\n".join(parts)
    if not text.strip():
        with pytest.raises(InputError, match="t: is empty"):
            split_passages(text, "t")
        return
    found = split_passages(text, "t")
    assert " ".join(found).split() == text.split()
    assert all(passage.strip() and "\n\n" not in passage for passage in found)


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("One.\n\nTwo.", "utf-8")
    found = choose("bundled", text=path).scored
    assert found.passages == ("One.", "Two.")
    assert found.completions == choose("bundled").scored.completions
    path.write_text("\n \n", "utf-8")
    with pytest.raises(InputError, match=r"text\.txt: is empty"):
        choose("bundled", text=path)
