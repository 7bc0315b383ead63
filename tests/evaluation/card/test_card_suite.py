"""What the card suite makes of answers, with a runtime that answers by a script: verdicts, notes, and all that can go wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.as_json import card_dict
from gguf_tools.evaluation.card.expected import By, Free, Options, YesNo
from gguf_tools.evaluation.card.modes import ChatModes
from gguf_tools.evaluation.card.notes import notes_of
from gguf_tools.evaluation.card.questions import Completion, Question
from gguf_tools.evaluation.card.report import card_blocks, constant_line
from gguf_tools.evaluation.card.results import CardReport, Generation
from gguf_tools.tables import Report, View
from tests.evaluation.card.scripted import (
    COMPLETIONS,
    OPENED,
    PLAIN,
    QUESTIONS,
    SWITCH,
    Answer,
    Scripted,
    asked,
    card_set,
    perfect,
    scored,
    tokens_of,
)

FRANCE = QUESTIONS[:1]
THINKS = "[user]The capital of France?[assistant]"
ONLY_FRANCE = card_set(FRANCE, (), ())


def said(answer: str, template: str | None = SWITCH, **options: Any) -> CardReport:
    """What the suite makes of one answer to one question."""
    return scored(Scripted(lambda _: answer, template), ONLY_FRANCE, probes=0, **options)


# Answers


def test_all_right() -> None:
    report = scored(Scripted(perfect))
    assert all(item.right and item.works and item.fits for item in (*report.answers, *report.probes))
    assert notes_of(report) == []


@pytest.mark.parametrize("thinking", [False, True])
def test_an_answer_in_the_thought_does_not_count(thinking: bool) -> None:
    report = said("<think>The capital of France is Paris.</think>Lyon", thinking=thinking)
    (item,) = report.answers
    assert (item.reply.thought, item.reply.answer) == ("The capital of France is Paris.", "Lyon")
    assert (item.right, item.grade.reason) == (False, "other")


def test_an_answer_counts_after_a_thought_of_another() -> None:
    (item,) = said("<think>Lyon? No.</think>Paris", thinking=True).answers
    assert item.right
    assert item.works
    (item,) = said("<think>Lyon? No.</think>Paris", thinking=False).answers
    assert item.right
    assert not item.works


def test_a_thought_that_the_template_opened_is_read_as_one() -> None:
    (item,) = said("Paris, I think.</think>Lyon", OPENED).answers
    assert (item.reply.thought, item.reply.answer, item.right, item.works) == ("Paris, I think.", "Lyon", False, True)


@pytest.mark.parametrize("template", [PLAIN, None])
def test_a_thought_that_no_template_mentions_is_one_too(template: str | None) -> None:
    (item,) = said("<think>Paris.</think>Lyon", template).answers
    assert (item.reply.thought, item.right) == ("Paris.", False)


FAULTS: dict[str, tuple[str, bool, str]] = {
    "nothing": ("", False, "an empty answer"),
    "blanks": (" \n ", False, "an empty answer"),
    "signs": ("?!…?!", False, "an empty answer"),
    "nothing after a thought": ("<think>Paris.</think>", True, "an empty answer"),
    "an open thought": ("<think>It is Paris", True, "a thought that is never closed"),
    "an open thought that was not requested": ("<think>It is Paris", False, "a thought that is never closed"),
    "no thought": ("Paris", True, "no thought"),
    "an empty thought": ("<think> </think>Paris", True, "no thought"),
    "a thought too much": ("<think>Paris.</think>Paris", False, "a thought that was not requested"),
    "a loop": ("Paris. …", False, "an endless loop"),
    "a loop in a thought": ("<think>Paris. …", True, "an endless loop"),
}


@pytest.mark.parametrize(("answer", "thinking", "expected"), FAULTS.values(), ids=list(FAULTS))
def test_what_goes_wrong_is_named(answer: str, thinking: bool, expected: str) -> None:
    report = said(answer, thinking=thinking)
    (item,) = report.answers
    assert not item.works
    how = "with thinking" if thinking else "without thinking"
    assert notes_of(report) == [f"asked {how}, 1 of 1: {expected} (The capital of France?)"]
    assert card_dict(report)["notes"] == notes_of(report)


def test_an_endless_loop_is_measured() -> None:
    report = said("Paris. …", answer_tokens=30)
    (item,) = report.answers
    assert item.generation.loop is not None
    assert (item.generation.loop.period, item.generation.loop.length) == (7, 30)
    assert not item.generation.ended
    assert card_dict(report)["answers"][0]["endless_loop"] == {"period": 7, "tokens": 30}
    assert card_dict(report)["parts"]["repetition"]["longest_loop"] == {"period": 7, "tokens": 30}
    assert card_dict(report)["parts"]["repetition"]["endless_loops"] == 1


def test_a_loop_that_ends_by_itself_is_none() -> None:
    report = said("Paris" + " la" * 12)
    assert report.answers[0].generation.loop is None
    assert report.answers[0].works


@pytest.mark.parametrize("answer", ["Paris, of course", "Lyon, of course, not"])
def test_an_answer_that_is_cut_off_is_named_and_still_graded(answer: str) -> None:
    report = said(answer, answer_tokens=15)
    (item,) = report.answers
    assert item.right == answer.startswith("Paris")
    assert (item.reply.answer, item.generation.ended) == (answer[:15], False)
    assert notes_of(report) == ["asked without thinking, 1 of 1: cut off before its end (The capital of France?)"]


def test_a_note_counts_and_names_some() -> None:
    report = scored(Scripted(lambda prompt: "Rome" if "Italy" in prompt else ""), card_set(completions=()), probes=0)
    assert notes_of(report) == [
        "asked without thinking, 4 of 5: an empty answer (The capital of France?; The capital of Spain?; and 2 more)"
    ]
    long = Question("Why " + "so " * 40 + "long?", Free(("x",)))
    (note,) = notes_of(scored(Scripted(lambda _: ""), card_set([long], ()), probes=0))
    assert len(note) < 130


def test_every_kind_of_fault_has_its_note() -> None:
    answers = {
        "France": "",
        "Italy": "<think>Rome",
        "Spain": "x …",
        "Japan": "Tokyo, the city between " + "".join(map(str, range(80))),
        "Egypt": "Cairo",
    }
    runtime = Scripted(lambda prompt: next(answers[c] for c in answers if c in prompt))
    notes = notes_of(scored(runtime, card_set(completions=()), probes=0))
    assert [note.split(": ")[1].split(" (")[0] for note in notes] == [
        "an empty answer",
        "a thought that is never closed",
        "an endless loop",
        "cut off before its end",
    ]
    assert all(note.startswith("asked without thinking, 1 of 5: ") for note in notes)


def test_a_mode_works_only_where_it_comes_to_an_end() -> None:
    endless = "Paris, " + " ".join(map(str, range(100)))
    (item,) = said(endless).answers
    assert (item.right, item.works, item.generation.ended) == (True, False, False)


def test_a_text_that_is_cut_is_noted() -> None:
    long = "a" * 600
    report = scored(Scripted(perfect), card_set(passages=("short", long)))
    assert [passage.pieces for passage in report.passages] == [1, 2]
    (note,) = notes_of(report)
    assert note.startswith("1 of 2 passages were split into pieces")


def test_a_refused_system_prompt_names_the_question() -> None:
    template = "{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}" + PLAIN
    runtime = Scripted(perfect, template.replace("{{ 1 / 0 }}", "{{ nothing.at.all }}"))
    question = Question("The capital of France?", Free(("Paris",)), system="Be brief.")
    with pytest.raises(InputError, match=r"refused the messages.*; the question is 'The capital of France\?'$"):
        scored(runtime, card_set((question,)))


def test_held_out_answers_have_notes_too() -> None:
    runtime = Scripted(lambda prompt: "" if "France" in prompt else perfect(prompt))
    (note,) = notes_of(scored(runtime, card_set(QUESTIONS[1:]), FRANCE))
    assert note == "asked without thinking, 1 of 5: an empty answer (The capital of France?)"


# Without a chat template


def test_without_a_template_the_questions_are_plain_text() -> None:
    report = scored(Scripted(lambda p: f" {asked(p)}\nQuestion: more?" if "Answer:" in p else perfect(p), None))
    assert all(item.right for item in report.answers)
    assert report.modes == ChatModes(template=False)
    assert notes_of(report) == [
        "the model has no chat template: the questions were asked as plain text, without testing thinking modes"
    ]
    parts = card_dict(report)["parts"]
    assert parts["thinking"]["missing"] == parts["non_thinking"]["missing"] == "the model has no chat template"
    assert parts["facts"]["score"] == 100


@pytest.mark.parametrize(
    ("answer", "text", "kept"),
    [
        (" Lyon\nParis", "Lyon", " Lyon\n"),
        ("\n\n Paris \nLyon\nLyon", "Paris ", "\n\n Paris \n"),
        ("Paris", "Paris", "Paris"),
        ("Paris\n", "Paris\n", "Paris\n"),
        ("Paris\n" + "Question: again? …", "Paris", "Paris\n"),
    ],
)
def test_only_the_first_line_of_plain_text_counts(answer: str, text: str, kept: str) -> None:
    """Neither the text behind it nor what that repeats."""
    (item,) = said(answer, None).answers
    assert item.generation == Generation(text=text, tokens=tuple(map(ord, kept)), fits=True, ended=True, loop=None)
    assert item.right == ("Paris" in text)


# Too little room


def test_a_question_too_long_for_the_context_is_named() -> None:
    long = Question("What is " + "very " * 30 + "far?", Free(("space",)))
    runtime = Scripted(perfect, context=100)
    report = scored(runtime, card_set([*FRANCE, long, QUESTIONS[1]]))
    assert [item.fits for item in report.answers] == [True, False, True]
    assert [item.right for item in report.answers] == [True, False, True]
    assert not report.answers[1].works
    assert [note.split(" (")[0] for note in notes_of(report)] == [
        "asked without thinking, 1 of 3: no room in the context of 100 tokens",
        "asked with thinking, 1 of 3: no room in the context of 100 tokens",
    ]
    assert card_dict(report)["answers"][1]["reason"] == "no room"


def test_no_question_fits() -> None:
    runtime = Scripted(perfect, context=len(THINKS))
    with pytest.raises(InputError, match="no question fits into the context of 39 tokens; give a longer context"):
        scored(runtime)
    assert runtime.calls == [()]


def test_the_context_may_end_an_answer() -> None:
    runtime = Scripted(perfect, context=len(tokens_of(THINKS + "<think></think>")) + 3)
    report = scored(runtime, ONLY_FRANCE, probes=0)
    assert runtime.calls[0] == (3,)
    assert report.answers[0].reply.answer == "Par"
    assert notes_of(report) == ["asked without thinking, 1 of 1: cut off before its end (The capital of France?)"]


# Completions


REPEATS = "an endless loop after a right sentence, which is coherent but repeats itself"


@pytest.mark.parametrize(
    ("said", "coherent", "fault"),
    [
        (" three, four.", True, None),
        (" THREE!", True, None),
        (" threesome", False, None),
        (" four", False, None),
        ("", False, "an empty continuation"),
        (" three …", False, "an endless loop"),
        (" three \ufffd", False, None),
        (" three, four, five, one, two,…", True, None),
        (" three\n four\n five\n one\n two\n…", True, None),
        (" three, three, three,…", False, "an endless loop"),
        (" three, four, three, four,…", False, "an endless loop"),
        (" four, five, six, one, two,…", False, "an endless loop"),
        (" three. One is two.…", True, REPEATS),
        (" three. three.…", False, "an endless loop"),
        (" three I am not…", False, "an endless loop"),
        (f" three, {'four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, ' * 2}", True, None),
    ],
)
def test_a_completion_goes_on_as_it_must(said: str, coherent: bool, fault: str | None) -> None:
    content = card_set(FRANCE, COMPLETIONS[:1])
    report = scored(Scripted(lambda prompt: said if prompt == COMPLETIONS[0].prompt else perfect(prompt)), content)
    assert report.completions[0].coherent == coherent
    assert notes_of(report) == ([f"continued, 1 of 1: {fault} (One, two,)"] if fault else [])


def endless(said: str) -> Answer:
    """The same again and again."""
    return lambda _: f"{said}…"


def test_a_list_that_starts_anew_counts_once() -> None:
    """The default completion whose right continuation has no end."""
    week = Completion("The days of the week are Monday, Tuesday, Wednesday,", ("Thursday",))
    days = " Thursday, Friday, Saturday, Sunday, Monday, Tuesday, Wednesday,"
    for said in (days, " Thursday, Friday, Saturday, and Sunday, Monday, Tuesday, Wednesday,"):
        runtime = Scripted(endless(said))
        report = scored(runtime, card_set((), [week], ()), completion_tokens=400)
        assert report.completions[0].coherent
        assert report.completions[0].generation.text == said
        assert card_dict(report)["parts"]["repetition"]["endless_loops"] == 0
        assert notes_of(report) == []


# Choices by likelihood

METAL = Question("Which is a metal?", Options(("wood", "iron", "milk"), 1, "letters"))


@pytest.mark.parametrize("template", [PLAIN, SWITCH, None])
@pytest.mark.parametrize("by", ["letters", "options"])
def test_a_choice_by_likelihood(template: str | None, by: By) -> None:
    def answer(prompt: str) -> str:
        return (" " if template is None else "") + ("B" if by == "letters" else "iron")

    expected = Options(("wood", "iron", "milk"), 1, by)
    runtime = Scripted(answer, template)
    report = scored(runtime, card_set([replace(METAL, expected=expected)], (), ()), probes=0)
    (item,) = report.answers
    assert (item.right, item.grade.read) == (True, "B) iron")
    # one nat for each letter that is not as the script has it, per byte: "wood" and "iron" have one in common
    assert item.likelihoods == ((-1.0, 0.0, -1.0) if by == "letters" else (-0.75, 0.0, -1.0))
    (row,) = card_dict(report)["answers"]
    assert (row["kind"], row["expected"], row["likelihoods"]) == ("choice", "B) iron", list(item.likelihoods))


def test_a_choice_is_read_from_the_text_after_a_thought() -> None:
    content = card_set([METAL], (), ())
    (item,) = scored(Scripted(lambda _: "<think>Hm.</think>B", OPENED), content).answers
    assert (item.right, item.likelihoods) == (True, None)


def test_a_choice_whose_options_have_no_room_is_not_answered() -> None:
    long = Question("Which?", Options(("wood", "iron " * 30), 1, "options"))
    report = scored(Scripted(lambda _: "wood", PLAIN, context=60), card_set([*FRANCE, long], (), ()))
    assert [item.fits for item in report.answers] == [True, False]
    assert not report.answers[1].right


def test_kinds_and_constants_are_reported() -> None:
    questions = [*QUESTIONS[:2], Question("Is it?", YesNo(False)), Question("Is it so?", YesNo(False))]
    report = scored(Scripted(lambda prompt: asked(prompt) or "No."), card_set(questions, (), ()), probes=0)
    part = card_dict(report)["parts"]["facts"]
    assert part["constant"] == {"answer": "no", "right": 2}
    assert {kind: (one["right"], one["constant"]["right"]) for kind, one in part["kinds"].items()} == {
        "free": (2, 1),
        "yesno": (2, 2),
    }
    assert constant_line(report) == "a constant answer gets 2 (no) of 4 facts"
    assert "a constant answer gets 2 (no)" in Report(card_blocks(report)).as_text(View(None))
    assert (
        "by kind: free 2 of 2 (constant 1 (Paris)); yesno 2 of 2 (constant 2 (no))"
        in Report(card_blocks(report)).as_text()
    )


def test_a_text_too_long_to_continue_is_named() -> None:
    content = card_set(FRANCE, [Completion("so on and " * 12, ("on",))])
    report = scored(Scripted(lambda _: "Paris", PLAIN, context=100), content)
    assert not report.completions[0].coherent
    assert notes_of(report) == [
        "continued, 1 of 1: no room in the context of 100 tokens "
        "(so on and so on and so on and so on and so on and so on …)"
    ]
