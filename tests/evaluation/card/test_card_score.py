"""From answers to a score, its interval, paired differences, and what is shown and written of them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.as_json import card_dict, difference_dict, flat_card, to_csv
from gguf_tools.evaluation.card.compare import Difference, best_first, difference, score_interval
from gguf_tools.evaluation.card.parts import DEFAULT_WEIGHTS, checked_weights, overall, parts_of
from gguf_tools.evaluation.card.report import (
    CARD_COLUMNS,
    DIFFERENCE_COLUMNS,
    HELD_OUT_COLUMNS,
    card_blocks,
    card_row,
    difference_row,
    held_out_row,
)
from gguf_tools.evaluation.card.results import CardReport, Passage
from gguf_tools.evaluation.card.statistics import Interval, Paired
from gguf_tools.evaluation.tables import FIDELITY_COLUMNS
from gguf_tools.tables import Report, Table, View
from tests.evaluation.card.scripted import (
    CAPITALS,
    COMPLETIONS,
    OPENED,
    PASSAGES,
    PLAIN,
    QUESTIONS,
    SWITCH,
    TEXT_VOCAB,
    UNDECIDED,
    Scripted,
    asked,
    card_set,
    direct,
    perfect,
    scored,
)

HUGE = Passage(1e40, 3, 9)
"""A passage whose perplexity no float can hold."""


def one_of(count: int) -> Any:
    """Logits by which the next token is one of `count` equally likely ones."""

    def logits(ids: Sequence[int]) -> npt.NDArray[np.float32]:
        rows = np.full((len(ids), TEXT_VOCAB), -1e4, np.float32)
        for row, following in zip(rows, ids[1:], strict=False):
            row[[(following + other) % TEXT_VOCAB for other in range(count)]] = 0
        return rows

    return logits


def report(wrong: Sequence[str] = (), template: str | None = None, choices: int = 1, **options: Any) -> CardReport:
    """A model that is wrong about some countries; where no template is given, one that can think."""

    def answer(prompt: str) -> str:
        found = perfect(prompt) if template is None else direct(prompt)
        return found.replace(str(asked(prompt)), "Wronk") if any(c in prompt for c in wrong) else found

    return scored(Scripted(answer, template or SWITCH, logits=one_of(choices)), **options)


countries = st.lists(st.sampled_from(list(CAPITALS)), unique=True)
PERFECT = report()
WORSE = report(["France", "Japan"], choices=3)


# The score


def text_of(found: CardReport) -> str:
    return Report(card_blocks(found)).as_text(View(None))


def test_all_right_is_100() -> None:
    assert overall(PERFECT) == 100
    assert {name: part.score for name, part in parts_of(PERFECT).items()} == dict.fromkeys(DEFAULT_WEIGHTS, 1.0)
    found = score_interval(PERFECT)
    assert found.high == 100
    assert found.low < 90, "five questions of five leave much open"


def test_all_wrong_is_0() -> None:
    nothing = scored(Scripted(lambda _: ""))
    assert overall(nothing) == 0
    assert {part.score for part in parts_of(nothing).values()} == {0.0}


@given(countries, countries)
@settings(max_examples=20)
def test_a_wrong_answer_never_raises_the_score(wrong: list[str], more: list[str]) -> None:
    before, after = overall(report(wrong)), overall(report([*wrong, *more]))
    assert after <= before
    assert (after < before) == (not set(more) <= set(wrong))


def test_each_part_lowers_the_score_by_its_weight() -> None:
    half = 1 / len(QUESTIONS)
    assert overall(report(["France"])) == pytest.approx(100 - 40 * half, abs=1e-9)
    continued = scored(Scripted(lambda p: "" if p == COMPLETIONS[0].prompt else perfect(p), logits=one_of(1)))
    assert overall(continued) == pytest.approx(100 - 15 / 2, abs=1e-9)
    assert overall(report(choices=4)) == pytest.approx(100 - 15 / 2, abs=1e-9), "2 bits of 4 a byte"
    assert overall(report(choices=2)) == pytest.approx(100 - 15 / 4, abs=1e-9)
    thinks = scored(Scripted(lambda p: f"<think>Hm.</think>{direct(p)}" if asked(p) else perfect(p), logits=one_of(1)))
    assert overall(thinks) == pytest.approx(90, abs=1e-9), "the thought was not asked for"
    never = scored(Scripted(direct, logits=one_of(1)))
    assert overall(never) == pytest.approx(90, abs=1e-9), "the thought that was asked for is not there"


def test_repetition_counts_ngrams_of_all_texts() -> None:
    def answer(prompt: str) -> str:
        return " three " + "abcdefgh" * 2 if prompt == COMPLETIONS[0].prompt else perfect(prompt)

    found = scored(Scripted(answer, logits=one_of(1)))
    grams = sum(max(len(g.tokens) - 3, 0) for g in found.generations)
    assert card_dict(found)["parts"]["repetition"]["repeated_share"] == pytest.approx(5 / grams, rel=1e-12)
    assert overall(found) == pytest.approx(100 - 10 * 5 / grams, abs=0.005)


@given(
    wrong=countries,
    template=st.sampled_from([None, PLAIN, OPENED, UNDECIDED]),
    completions=st.integers(0, 2),
    weights=st.fixed_dictionaries(dict.fromkeys(DEFAULT_WEIGHTS, st.integers(1, 100).map(float))),
)
@settings(max_examples=25)
def test_parts_that_are_left_out_keep_the_others_proportions(
    wrong: list[str], template: str | None, completions: int, weights: dict[str, float]
) -> None:
    content = card_set(completions=COMPLETIONS[:completions])
    found = report(wrong, template, content=content, weights=weights)
    parts = {name: part for name, part in card_dict(found)["parts"].items() if part["score"] is not None}
    expected = {"facts", "perplexity", "repetition"} | ({"completion"} if completions else set())
    expected |= {None: {"thinking", "non_thinking"}, PLAIN: {"non_thinking"}, OPENED: {"thinking"}}.get(template, set())
    assert set(parts) == expected
    mean = sum(part["weight"] * part["score"] for part in parts.values()) / sum(p["weight"] for p in parts.values())
    assert overall(found) == pytest.approx(mean, abs=0.005 + 1e-9)
    assert overall(report(wrong, template, content=content, weights={n: 7 * w for n, w in weights.items()})) == overall(
        found
    )


def test_why_a_part_is_missing() -> None:
    def missing(found: CardReport) -> dict[str, str]:
        return {name: part["missing"] for name, part in card_dict(found)["parts"].items() if "missing" in part}

    assert missing(PERFECT) == {}
    assert missing(report(template=PLAIN)) == {"thinking": "the chat template has no thinking mode"}
    assert missing(report(template=OPENED)) == {"non_thinking": "the chat template always asks for a thought"}
    both = "the chat template lets the model decide whether to think"
    assert missing(report(template=UNDECIDED)) == {"thinking": both, "non_thinking": both}
    runtime = Scripted(perfect, None)
    assert missing(scored(runtime, card_set(QUESTIONS, (), ["x"]))) == {
        "completion": "no text to continue was given",
        "perplexity": "no text was given",
        "thinking": "the model has no chat template",
        "non_thinking": "the model has no chat template",
    }
    assert missing(scored(runtime, card_set((), ()))) | {"thinking": "", "non_thinking": ""} == {
        "facts": "no question was given",
        "completion": "no text to continue was given",
        "repetition": "nothing was generated",
        "thinking": "",
        "non_thinking": "",
    }
    with pytest.raises(InputError, match="no part with a weight above 0 could be measured"):
        card_dict(scored(runtime, card_set((), (), ["x"])))


def test_a_part_without_weight_does_not_count() -> None:
    weights = checked_weights({"facts": 0, "perplexity": 0})
    assert overall(report(["France"], choices=9, weights=weights)) == 100
    assert (
        overall(report(["France"], weights=checked_weights(dict.fromkeys(DEFAULT_WEIGHTS, 0.0) | {"facts": 2}))) == 80
    )
    with pytest.raises(InputError, match="no part with a weight above 0 could be measured"):
        overall(report(template=PLAIN, weights=dict.fromkeys(DEFAULT_WEIGHTS, 0.0) | {"thinking": 1.0}))


def test_weights_are_one_table() -> None:
    assert checked_weights({}) == DEFAULT_WEIGHTS
    assert sum(DEFAULT_WEIGHTS.values()) == 100
    assert checked_weights({"facts": 50.5}) == {**DEFAULT_WEIGHTS, "facts": 50.5}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"taste": 1.0}, "part 'taste' is not known; expected one of facts, completion, perplexity"),
        ({"fact": 1.0}, "part 'fact' is not known; did you mean facts?"),
        ({"facts": -1.0}, "the weight of facts is -1.0; expected a number from 0 to 1,000,000"),
        ({"facts": 1e308}, "the weight of facts is 1e+308; expected a number from 0 to 1,000,000"),
        ({"facts": math.nan}, "the weight of facts is nan"),
        ({"facts": math.inf}, "the weight of facts is inf"),
        (dict.fromkeys(DEFAULT_WEIGHTS, 0.0), "all weights are 0; expected at least one above 0"),
    ],
)
def test_bad_weights_are_refused(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(InputError) as found:
        checked_weights(weights)
    assert str(found.value).startswith(expected)


# Perplexity


@pytest.mark.parametrize("bos", [None, "^"])
@pytest.mark.parametrize("count", [1, 2, 3, 256])
def test_perplexity_of_known_logits(bos: str | None, count: int) -> None:
    """Among n equally likely tokens each costs ln n nats, and here a token is a byte."""
    found = scored(Scripted(perfect, bos=bos, logits=one_of(count)))
    tokens = [len(text) - (bos is None) for text in PASSAGES]
    assert [(p.tokens, p.bytes) for p in found.passages] == [(n, n) for n in tokens]
    assert [p.nats for p in found.passages] == pytest.approx([n * math.log(count) for n in tokens], rel=1e-12)
    part = card_dict(found)["parts"]["perplexity"]
    assert part["perplexity"] == pytest.approx(count, rel=1e-12)
    low, high = part["interval"]
    assert 1 - 1e-12 <= low <= count * (1 + 1e-12)
    assert count * (1 - 1e-12) <= high <= 256
    assert low < high, "three passages that agree do not settle it"
    assert part["bits_per_byte"] == pytest.approx(math.log2(count), rel=1e-12)
    assert part["tokens"] == sum(tokens)
    assert part["score"] == pytest.approx(100 * max(1 - math.log2(count) / 4, 0), abs=1e-9)


def test_bits_count_bytes_and_not_characters() -> None:
    (passage,) = scored(Scripted(perfect, logits=one_of(2)), card_set(passages=["aéé"])).passages
    assert (passage.tokens, passage.bytes) == (2, 4)
    (passage,) = scored(Scripted(perfect, logits=one_of(2)), card_set(passages=["éab"])).passages
    assert (passage.tokens, passage.bytes) == (2, 2)


def test_passages_are_weighed_by_their_length() -> None:
    def logits(ids: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.asarray(one_of(2 if len(ids) > 5 else 8)(ids))

    found = scored(Scripted(perfect, logits=logits), card_set(passages=["abcdefghi", "abc"]))
    part = card_dict(found)["parts"]["perplexity"]
    assert part["bits_per_byte"] == pytest.approx((8 * 1 + 2 * 3) / 10, rel=1e-12)
    low, high = part["bits_interval"]
    assert 0 <= low < 1.4 < high <= 5, "one step beyond 1 and 3"
    assert part["interval"] == pytest.approx([2**low, 2**high], rel=1e-12), "a token is a byte"


def test_a_short_context_reads_a_passage_in_pieces() -> None:
    runtime = Scripted(lambda _: "x", None, 49, logits=one_of(4))
    found = scored(runtime, card_set(QUESTIONS[:1], (), ["ab" * 60]))
    assert list(map(len, runtime.read)) == [49, 49, 22]
    assert [(p.tokens, p.bytes) for p in found.passages] == [(117, 117)]


def test_a_passage_of_one_token_is_none() -> None:
    """Nothing foretells it; it must not pass for one that was foretold without fault."""
    found = scored(Scripted(perfect, logits=one_of(4)), card_set(passages=["x", "abc"]))
    assert len(found.passages) == 1
    assert parts_of(found)["perplexity"].score == pytest.approx(0.5, rel=1e-12)


# Intervals and differences


@given(countries, st.integers(1, 6), st.sampled_from([None, PLAIN]))
@settings(max_examples=15)
def test_the_interval_contains_the_score(wrong: list[str], choices: int, template: str | None) -> None:
    found = report(wrong, template, choices)
    interval = score_interval(found)
    assert -1e-9 <= interval.low <= overall(found) + 0.005
    assert overall(found) - 0.005 <= interval.high <= 100 + 1e-9
    for part in card_dict(found)["parts"].values():
        if "share" in part:
            low, high = part["interval"]
            assert 0 <= low <= part["share"] <= high <= 1
            assert high - low > 0.05, "so few questions leave much open"


@pytest.mark.parametrize("found", [PERFECT, WORSE, report(template=PLAIN), report([], OPENED, 5)])
def test_no_difference_from_itself(found: CardReport) -> None:
    held = replace(found, held_out=found.answers)
    result = difference("a", "b", {"a": held, "b": held})
    assert result.verdict == "no significant difference"
    assert result.score is not None
    assert result.bits is not None
    assert (result.score.estimate, result.score.p_value) == (0, 1)
    low, high = result.score.interval.as_list()
    assert low < 0 < high, "other questions may tell the two apart"
    assert high == pytest.approx(-low, abs=1e-9)
    bits = result.bits
    assert (bits.estimate, bits.interval.low, bits.interval.high, bits.p_value) == (0, 0, 0, 1)
    for counted in (result.facts, result.held_out):
        assert counted is not None
        assert (counted.first_only, counted.second_only, counted.p_value) == (0, 0, 1)
    same = (f"+0.00 ({low:+.2f} to {high:+.2f})", "+0 (p = 1)", "+0 (p = 1)", "+0.000 (+0.000 to +0.000)")
    assert difference_row(result) == (*same, "no significant difference")


def test_a_difference_is_second_minus_first() -> None:
    many = [replace(q, question=f"{n} {q.question}") for n in range(2) for q in QUESTIONS]
    content = card_set(many, passages=["It rains."] * 10)
    found = {"good": report(content=content), "bad": report(list(CAPITALS), content=content, choices=3)}
    down, up = difference("good", "bad", found), difference("bad", "good", found)
    assert down.verdict == "scores lower, fewer facts right, predicts the text worse"
    assert up.verdict == "scores higher, more facts right, predicts the text better"
    assert down.score is not None
    assert down.score.estimate == pytest.approx(overall(found["bad"]) - overall(found["good"]), abs=0.01)
    assert down.facts is not None
    assert (down.facts.first_only, down.facts.second_only, down.facts.difference) == (10, 0, -1)
    assert down.facts.p_value == 2 / 2**10
    assert down.bits is not None
    assert up.bits is not None
    assert down.bits.estimate == -up.bits.estimate == pytest.approx(math.log2(3), rel=1e-12)
    assert down.held_out is None


def test_few_questions_show_nothing() -> None:
    """Five of five lost: p = 2/2^5 is above 0.05, whatever the shares look like."""
    result = difference("good", "bad", {"good": PERFECT, "bad": report(list(CAPITALS), choices=3)})
    assert result.facts is not None
    assert result.facts.p_value == 2 / 2**5
    assert result.bits is not None
    assert result.bits.p_value == pytest.approx(2 / 2**3, abs=0.02)
    assert result.verdict == "scores lower", "only both together are enough"


def test_an_answer_that_loses_in_several_parts_counts_once() -> None:
    """Five answers that are wrong and never end cost facts, non-thinking and repetition, and are still five items."""
    broken = scored(Scripted(lambda prompt: "Wronk " * 20 + "…", PLAIN, logits=one_of(1)))
    whole = scored(Scripted(direct, PLAIN, logits=one_of(1)))
    broken = replace(broken, completions=whole.completions)
    assert {name for name, part in parts_of(broken).items() if part.score < 1} == {
        "facts",
        "repetition",
        "non_thinking",
    }
    result = difference("whole", "broken", {"whole": whole, "broken": broken})
    assert result.score is not None
    assert result.score.p_value == pytest.approx(2 / 2**5, abs=0.01)
    assert result.verdict == "no significant difference"


def test_the_same_number_wrong_is_no_difference_in_facts() -> None:
    found = {"a": report(["France", "Spain"]), "b": report(["Italy", "Egypt"])}
    result = difference("a", "b", found)
    assert result.facts is not None
    assert (result.facts.first_only, result.facts.second_only) == (2, 2)
    assert result.verdict == "no significant difference"


def test_held_out_facts_have_a_test_of_their_own() -> None:
    more = [replace(q, question=f"{n} {q.question}") for n in range(2) for q in QUESTIONS]
    found = {
        "a": report(held_out=more),
        "b": scored(Scripted(lambda p: "x" if p.startswith("[user]1 ") else perfect(p), logits=one_of(1)), None, more),
        "c": scored(Scripted(lambda p: "x" if "]0 " in p or "]1 " in p else perfect(p), logits=one_of(1)), None, more),
    }
    result = difference("a", "b", found)
    assert result.held_out is not None
    assert (result.held_out.first_only, result.held_out.second_only) == (5, 0)
    assert result.verdict == "no significant difference"
    assert difference("a", "c", found).verdict == "fewer held-out facts right"


def test_what_was_not_done_alike_is_not_compared() -> None:
    others = report(content=card_set(QUESTIONS[::-1], passages=PASSAGES[:2]))
    result = difference("a", "b", {"a": PERFECT, "b": others})
    assert (result.score, result.facts, result.bits, result.held_out) == (None, None, None, None)
    assert result.verdict == "not compared: they were measured on different items"
    turned = [replace(PERFECT, answers=PERFECT.answers[i : i + 2][::step]) for i, step in ((1, 1), (1, -1))]
    assert difference("a", "b", dict(zip("ab", turned, strict=True))).facts is None, "in another order"
    plain = difference("a", "b", {"a": PERFECT, "b": report(template=PLAIN)})
    assert plain.score is None, "the parts are not the same"
    assert plain.facts is not None
    assert plain.bits is not None
    assert plain.verdict == "no significant difference"


def test_numbers_that_round_to_0_have_no_minus() -> None:
    tiny = Paired(-1e-4, Interval(-2e-3, 1e-5), 0.5)
    found = Difference(first="a", second="b", score=tiny, facts=None, bits=tiny, held_out=None, repetition=None)
    assert difference_row(found) == ("+0.00 (+0.00 to +0.00)", None, None, "+0.000 (-0.002 to +0.000)", found.verdict)


def test_best_first_and_equals_as_given() -> None:
    found = {"b": PERFECT, "w": WORSE, "a": PERFECT}
    assert best_first(found) == ["b", "a", "w"]
    assert best_first(dict(reversed(found.items()))) == ["a", "b", "w"]


# What is shown and written


@pytest.mark.parametrize(
    "found",
    [
        PERFECT,
        replace(WORSE, held_out=WORSE.answers),
        report(template=OPENED),
        replace(PERFECT, passages=(HUGE, HUGE)),
        replace(PERFECT, passages=(), completions=()),
        replace(PERFECT, answers=(), probes=(), completions=()),
        scored(Scripted(lambda _: "x …", None)),
    ],
    ids=["perfect", "worse", "opened", "endless perplexity", "no text", "no questions", "loops"],
)
def test_every_report_can_be_written(found: CardReport) -> None:
    card = card_dict(found)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert len(card_row(found)) == len(CARD_COLUMNS)
    assert len(held_out_row(found)) == len(HELD_OUT_COLUMNS)
    assert text_of(found).startswith(f"score {overall(found):.2f} of 100, 95% interval ")
    result = difference("a", "b", {"a": PERFECT, "b": found})
    assert len(difference_row(result)) == len(DIFFERENCE_COLUMNS)
    written = difference_dict(result)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["verdict"] == result.verdict
    (row,) = csv.DictReader(io.StringIO(to_csv([flat_card(found)])))
    assert float(row["score"]) == overall(found)
    for name, part in card["parts"].items():
        assert row[f"{name}.score"] == ("" if part["score"] is None else str(part["score"]))


@pytest.mark.parametrize("passage", [HUGE, Passage(2400.0, 3, 9)])
def test_a_perplexity_beyond_any_float_is_said(passage: Passage) -> None:
    found = replace(PERFECT, passages=(passage, passage))
    part = card_dict(found)["parts"]["perplexity"]
    assert (part["perplexity"], part["score"]) == (None, 0)
    (at,) = (n for n, column in enumerate(CARD_COLUMNS) if column.head == "perplexity")
    assert CARD_COLUMNS[at].show(card_row(found)[at]) == "∞"
    assert re.search(r"∞ per token \(95% interval [^–]+–∞\)", text_of(found))


def test_the_card_says_what_was_measured() -> None:
    found = replace(report(["France"], choices=4), held_out=PERFECT.answers)
    lines = [line.split(maxsplit=3) for line in text_of(found).splitlines()]
    rows = {line[0]: (line[1], line[2], line[3]) for line in lines[5:12]}
    assert rows == {
        "facts": ("40", "80.0", "4 of 5 right (80%, 95% interval 28%–99%); a constant answer gets 1 (Paris)"),
        "completion": ("15", "100.0", "2 of 2 coherent (100%, 95% interval 16%–100%)"),
        "perplexity": ("15", "50.0", "4.000 per token (95% interval 1.287–12.432), 2.000 bits per byte, 36 tokens"),
        "repetition": ("10", "100.0", "0.0% of the 4-grams in 11 texts are repeated (95% interval 0.0%–44.8%)"),
        "thinking": ("10", "100.0", "4 of 4 with a closed thought and then an answer (100%, 95% interval 40%–100%)"),
        "non-thinking": ("10", "100.0", "5 of 5 with an answer and no thought (100%, 95% interval 48%–100%)"),
        "held": ("out", "–", "100.0  5 of 5 right (100%, 95% interval 48%–100%); a constant answer gets 1 (Paris)"),
    }
    assert "5 questions of the set made up, asked without thinking" in text_of(found)
    assert "not measured: the chat template always asks for a thought" in text_of(report(template=OPENED))


def test_csv_has_a_line_of_all_names() -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": 'x,"y"'}, {"b": "z\nz", "c": None}]
    parsed = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert parsed == [{"a": "1", "b": 'x,"y"', "c": ""}, {"a": "", "b": "z\nz", "c": ""}]
    assert to_csv([flat_card(PERFECT), flat_card(report(template=PLAIN))]).count("\n") == 3


def test_markdown_parses_back() -> None:
    rows = [card_row(PERFECT), card_row(WORSE)]
    lines = Table(CARD_COLUMNS, rows).markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [column.head for column in CARD_COLUMNS]
    assert all(set(cell) <= {":", "-"} for cell in cells[1])
    assert cells[2:] == [[c.show(value) for c, value in zip(CARD_COLUMNS, row, strict=True)] for row in rows]


def test_headings_are_unambiguous() -> None:
    heads = [column.head for column in (*FIDELITY_COLUMNS, *CARD_COLUMNS, *HELD_OUT_COLUMNS)]
    assert len(set(heads)) == len(heads)
