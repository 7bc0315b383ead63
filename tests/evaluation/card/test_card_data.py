"""The questions, completions and texts that `tinyq eval --suite card` ships, read as files."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from itertools import zip_longest
from math import isqrt
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import gguf_tools
from gguf_tools.evaluation.card.constants import best_constant
from gguf_tools.evaluation.card.expected import KINDS, Options, YesNo
from gguf_tools.evaluation.card.questions import load_questions

ROOT = Path(gguf_tools.__file__).resolve().parents[1]
DATA = ROOT / "gguf_tools" / "evaluation" / "card" / "data"
BUNDLED = ROOT / "gguf_tools" / "bundled"
GENERAL, FACTS = DATA / "general.jsonl", BUNDLED / "facts.jsonl"
COMPLETIONS = [DATA / "general_completions.jsonl", DATA / "bundled_completions.jsonl"]

SET_SIZE, SETS = 17, 10
STORIES_TOKENS = 250


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


COMMON = set(
    words(
        "a an and any are as at be but by can do for from go has have he her his i if in is it its may me my no none"
        " not of on one or our right she so some that the their them they this to true false up us was we what which"
        " who will with yes you your"
    )
)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def occurs(phrase: str, text: str) -> bool:
    """Whether the words of `phrase` stand in `text` one after the other."""
    return f" {' '.join(words(phrase))} " in f" {' '.join(words(text))} "


def round_robin(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One question of each topic in turn, topics and questions in the order of the file."""
    by_topic: dict[str, list[dict[str, Any]]] = {}
    for question in questions:
        by_topic.setdefault(question["topic"], []).append(question)
    return [question for turn in zip_longest(*by_topic.values()) for question in turn if question is not None]


def passages(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").strip().split("\n\n")


def computed(question: str) -> int:
    """The answer of an arithmetic question, by its wording."""
    number = [int(n) for n in re.findall(r"\d+", question)]
    if found := re.fullmatch(r"What is \d+ (plus|minus|times|divided by|to the power of) \d+\?", question):
        a, b = number
        if found[1] == "divided by":
            assert a % b == 0
            return a // b
        by_name = {"plus": a + b, "minus": a - b, "times": a * b, "to the power of": int(a**b)}
        return by_name[found[1]]
    (a,) = number
    if re.fullmatch(r"What is half of \d+\?", question):
        assert a % 2 == 0
        return a // 2
    assert re.fullmatch(r"What is the square root of \d+\?", question)
    root = isqrt(a)
    assert root * root == a
    return root


def test_the_general_questions_are_enough_and_evenly_spread_over_the_topics() -> None:
    questions = rows(GENERAL)
    sizes = Counter(q["topic"] for q in questions)
    assert len(questions) >= SETS * SET_SIZE
    assert 8 <= len(sizes) <= 10
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_every_set_of_seventeen_has_all_topics_equally_often_give_or_take_one() -> None:
    order = round_robin(rows(GENERAL))
    for start in range(0, SETS * SET_SIZE, SET_SIZE):
        sizes = Counter(q["topic"] for q in order[start : start + SET_SIZE])
        assert sum(sizes.values()) == SET_SIZE
        assert len(sizes) == len({q["topic"] for q in order})
        assert max(sizes.values()) - min(sizes.values()) <= 1


@pytest.mark.parametrize("path", [GENERAL, FACTS], ids=["general", "bundled"])
def test_a_question_is_well_formed(path: Path) -> None:
    questions = rows(path)
    for q in questions:
        kind = q.get("kind", "free")
        own = {"free": {"accept"}, "yesno": {"answer"}, "number": {"answer"}, "choice": {"options", "answer"}}[kind]
        assert {"question", "topic"} | own <= set(q) <= {"kind", "question", "topic", "system"} | own
        assert q["question"].endswith("?")
        assert q["question"] == q["question"].strip()
        assert q["topic"]
    assert len({" ".join(words(q["question"])) for q in questions}) == len(questions)


@pytest.mark.parametrize("path", [GENERAL, FACTS], ids=["general", "bundled"])
def test_neither_repeating_the_question_nor_a_common_word_is_an_answer(path: Path) -> None:
    for q in rows(path):
        if q.get("kind", "free") != "free":
            continue
        assert q["accept"]
        assert len(set(q["accept"])) == len(q["accept"])
        for answer in q["accept"]:
            assert words(answer), q
            assert not set(words(answer)) <= COMMON, q
            assert not occurs(answer, q["question"]), q


def test_the_arithmetic_answers_are_right() -> None:
    questions = [q for q in rows(GENERAL) if q["topic"] == "arithmetic"]
    assert questions
    for q in questions:
        assert (q["kind"], q["answer"]) == ("number", computed(q["question"])), q


def test_every_kind_is_in_the_first_set_and_no_constant_answer_does_well() -> None:
    questions = load_questions(GENERAL)
    ordered = [questions[rows(GENERAL).index(q)] for q in round_robin(rows(GENERAL))]
    assert {q.expected.kind for q in ordered[:SET_SIZE]} == set(KINDS)
    assert best_constant([q.expected for q in ordered[:SET_SIZE]]).right <= 2
    assert best_constant([q.expected for q in ordered]).right <= 0.06 * len(ordered)
    yes = [q.expected.answer for q in ordered if isinstance(q.expected, YesNo)]
    assert 2 * sum(yes) == len(yes)
    letters = Counter(q.expected.answer for q in ordered if isinstance(q.expected, Options))
    assert max(letters.values()) - min(letters.values()) <= 1


def test_the_first_set_asks_what_every_instruct_model_is_asked() -> None:
    first = [q["question"] for q in round_robin(rows(GENERAL))[:SET_SIZE]]
    assert first[0] == "What is the capital of France?"
    assert "What is 2 plus 2?" in first
    assert "Who wrote Romeo and Juliet?" in first


def test_the_bundled_facts_fill_a_set() -> None:
    facts = rows(FACTS)
    assert len(facts) >= SET_SIZE
    assert facts[0] == {"question": "What is the capital of France?", "accept": ["Paris"], "topic": "capitals"}


@pytest.mark.parametrize("path", COMPLETIONS, ids=lambda path: path.stem)
def test_a_completion_is_not_given_away_by_its_prompt(path: Path) -> None:
    completions = rows(path)
    assert len(completions) == 8
    assert len({c["prompt"] for c in completions}) == 8
    for c in completions:
        assert set(c) == {"prompt", "accept"}
        assert c["prompt"] == c["prompt"].strip()
        assert c["accept"]
        for answer in c["accept"]:
            assert not set(words(answer)) <= COMMON, c
            assert not occurs(answer, c["prompt"]), c


def test_a_bundled_prompt_leaves_room_for_its_continuation() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / "hybrid" / "tokenizer.json"))
    for c in rows(DATA / "bundled_completions.jsonl"):
        assert len(tokenizer.encode(c["prompt"], add_special_tokens=False).ids) + 64 <= STORIES_TOKENS


@pytest.mark.parametrize("name", ["general.txt", "bundled.txt"])
def test_the_texts_have_passages_of_clean_ascii(name: str) -> None:
    text = (DATA / name).read_text(encoding="utf-8")
    found = passages(DATA / name)
    assert len(found) >= 16
    assert len(set(found)) == len(found)
    assert text == "\n\n".join(found) + "\n"
    assert text.isascii()
    for passage in found:
        assert not re.search(r"[ \t]$|  |\t", passage, re.MULTILINE)
        assert passage == passage.strip()


def test_the_general_text_has_about_fifteen_hundred_words() -> None:
    assert 1400 <= len((DATA / "general.txt").read_text(encoding="utf-8").split()) <= 1600


@pytest.mark.parametrize("model", ["hybrid", "dense"])
def test_the_bundled_stories_fit_the_context_with_both_ends(model: str) -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / model / "tokenizer.json"))
    for story in passages(DATA / "bundled.txt"):
        assert len(tokenizer.encode(story, add_special_tokens=False).ids) + 2 <= STORIES_TOKENS


def test_the_bundled_stories_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of the examples' own held-out sample, and in none of the stories that the models were trained on."""
    source = (ROOT / "examples" / "packing.py").read_text(encoding="utf-8")
    trained_on = int(re.search(r"^STORIES = ([\d_]+)$", source, re.MULTILINE)[1])  # type: ignore[index]
    sample = int(re.search(r"^HELD_OUT = ([\d_]+)$", source, re.MULTILINE)[1])  # type: ignore[index]
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    corpus = importlib.import_module("corpus")
    ours = passages(DATA / "bundled.txt")
    assert set(ours) <= set(corpus.stories(corpus.HELD_OUT_SEED, sample))
    assert not set(ours) & set(corpus.stories(corpus.TRAIN_SEED, trained_on))
    assert any("\n" in story for story in ours)
