"""A card report as text: lines and tables for one or several models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from gguf_tools.evaluation.card.as_json import answers_dict, card_dict, part_facts, share_dict
from gguf_tools.evaluation.card.compare import Difference, difference, score_interval
from gguf_tools.evaluation.card.notes import ASKED
from gguf_tools.evaluation.card.parts import overall
from gguf_tools.evaluation.card.power import power_of
from gguf_tools.evaluation.card.results import CardReport, outcomes_of
from gguf_tools.evaluation.card.statistics import McNemar, Paired
from gguf_tools.tables import Block, Column, Lines, Table

FILE_COLUMN = Column("file", left=True, key=True, least=20)

CARD_COLUMNS = (
    Column("score", "{:.2f}".format),
    Column("score 95%", lambda interval: "{:.1f}–{:.1f}".format(*interval)),
    Column("facts", lambda counts: "{}/{}".format(*counts)),
    Column("facts 95%", lambda interval: _percents(interval)),
    Column("completion", lambda counts: "{}/{}".format(*counts), rank=1),
    Column("perplexity", lambda value: _number(value), rank=1),
    Column("bits/byte", "{:.3f}".format, rank=1),
    Column("repeated", "{:.1%}".format, rank=2),
    Column("thinking", lambda counts: "{}/{}".format(*counts), rank=2),
    Column("non-thinking", lambda counts: "{}/{}".format(*counts), rank=2),
)
"""Columns for `card_row`: intervals are pairs (low, high), counts are pairs (right, asked)."""


def card_row(report: CardReport) -> tuple[Any, ...]:
    """One table row with the columns of CARD_COLUMNS."""
    outcomes, found = outcomes_of(report), part_facts(report)
    counted = {name: (sum(right), len(right)) if right else None for name, right in outcomes.items()}
    text, repetition = found.get("perplexity"), found.get("repetition")
    return (
        overall(report),
        tuple(score_interval(report).as_list()),
        counted["facts"],
        tuple(found["facts"]["interval"]) if "facts" in found else None,
        counted["completion"],
        (inf if text["perplexity"] is None else text["perplexity"]) if text else None,
        text["bits_per_byte"] if text else None,
        repetition["repeated_share"] if repetition else None,
        counted["thinking"],
        counted["non_thinking"],
    )


HELD_OUT_COLUMNS = (
    Column("held out", lambda counts: "{}/{}".format(*counts)),
    Column("held out 95%", lambda interval: _percents(interval)),
)


def held_out_row(report: CardReport) -> tuple[Any, ...]:
    """One table row with the columns of HELD_OUT_COLUMNS."""
    if not report.held_out:
        return (None, None)
    found = share_dict([item.right for item in report.held_out])
    return ((found["right"], found["total"]), tuple(found["interval"]))


_PART_COLUMNS = (
    Column("part", left=True, key=True),
    Column("weight", "{:g}".format),
    Column("points", "{:.1f}".format),
    Column("measured", left=True, least=24, wrap=True),
)


def card_blocks(report: CardReport) -> list[Block]:
    """One model's report: the score, a table of its parts, and notes."""
    found = card_dict(report)
    low, high = found["interval"]
    held_out = found["held_out"]
    rows = [
        (name.replace("_", "-"), part["weight"], _points(part), _PART_TEXTS[name](part))
        for name, part in found["parts"].items()
    ]
    rows += [("held out", None, _points(held_out), answers_text(held_out))] if held_out else []
    asked = "question" if len(report.answers) == 1 else "questions"
    return [
        Lines(f"score {found['score']:.2f} of 100, 95% interval {low:.1f} to {high:.1f}"),
        Lines(f"{len(report.answers)} {asked} of the set {report.set_name}, asked {ASKED[report.mode]}"),
        Lines(),
        Table(_PART_COLUMNS, rows),
        *map(Lines, kind_lines(found["parts"]["facts"])),
        *([Lines(), Lines(reach)] if (reach := power_text(report)) else []),
        *([Lines()] if found["notes"] else []),
        *(Lines(f"note: {note}") for note in found["notes"]),
    ]


def power_text(report: CardReport) -> str:
    """What the report's items can show at all, in lines; "" for none."""
    said = power_of(report).sentences()
    return "\n".join(["what these items can show:", *(f"  {line}" for line in said)]) if said else ""


def _points(part: Mapping[str, Any]) -> float | None:
    points: float | None = part["score"] if "score" in part else 100 * part["share"]
    return points


def _share_text(part: Mapping[str, Any], what: str) -> str:
    return f"{part['right']} of {part['total']} {what} ({part['share']:.0%}, {_within(part, _percent)})"


def answers_text(part: Mapping[str, Any]) -> str:
    """The share of right answers, with what the best constant answer would get."""
    return f"{_share_text(part, 'right')}; a constant answer gets {_constant_text(part)}"


def kind_lines(part: Mapping[str, Any]) -> list[str]:
    """A line for each kind of question, if there are several: how many are right, and the best constant answer."""
    kinds = part.get("kinds", {})
    if len(kinds) < 2:
        return []
    told = [
        f"{kind} {found['right']} of {found['total']} (constant {_constant_text(found)})"
        for kind, found in kinds.items()
    ]
    return ["", f"by kind: {'; '.join(told)}"]


def constant_line(report: CardReport) -> str:
    """What the best constant answer would get of the facts, and of the held-out facts; "" if nothing was asked."""
    told = [
        f"{_constant_text(answers_dict(items))} of {len(items)} {name}"
        for name, items in (("facts", report.answers), ("held-out facts", report.held_out))
        if items
    ]
    return f"a constant answer gets {', '.join(told)}" if told else ""


def _constant_text(part: Mapping[str, Any]) -> str:
    return f"{part['constant']['right']} ({part['constant']['answer']})"


def _text_text(part: Mapping[str, Any]) -> str:
    perplexity = f"{_number(part['perplexity'])} per token ({_within(part, _number)})"
    return f"{perplexity}, {part['bits_per_byte']:.3f} bits per byte, {part['tokens']} tokens"


def _repetition_text(part: Mapping[str, Any]) -> str:
    share = f"{part['repeated_share']:.1%} of the {part['ngram']}-grams in {part['texts']} texts are repeated"
    loop = part["longest_loop"]
    within = _within(part, lambda value: f"{value:.1%}")
    return f"{share} ({within})" + (f", longest loop {loop['tokens']} tokens" if loop else "")


def _measured(describe: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda part: f"not measured: {part['missing']}" if "missing" in part else describe(part)


_PART_TEXTS = {
    "facts": _measured(lambda part: answers_text(part)),
    "completion": _measured(lambda part: _share_text(part, "coherent")),
    "perplexity": _measured(_text_text),
    "repetition": _measured(_repetition_text),
    "thinking": _measured(lambda part: _share_text(part, "with a closed thought and then an answer")),
    "non_thinking": _measured(lambda part: _share_text(part, "with an answer and no thought")),
}


def _within(part: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    low, high = part["interval"]
    return f"95% interval {shown(low)}–{shown(high)}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _percents(interval: Sequence[float]) -> str:
    return "–".join(map(_percent, interval))


def _number(perplexity: float | None) -> str:
    if perplexity is None or perplexity == inf:
        return "∞"
    return f"{perplexity:.3f}" if perplexity < 1000 else f"{perplexity:.4g}"


DIFFERENCE_COLUMNS = (
    Column("score"),
    Column("facts"),
    Column("held out"),
    Column("bits/byte"),
    Column("verdict", left=True, least=16, wrap=True),
)


def difference_row(found: Difference) -> tuple[str | None, ...]:
    """One table row with the columns of DIFFERENCE_COLUMNS: differences with 95% intervals or p-values."""
    return (
        changed_value(found.score, 2),
        changed_count(found.facts),
        changed_count(found.held_out),
        changed_value(found.bits, 3),
        found.verdict,
    )


def beside_the_best(cards: Mapping[str, CardReport], names: Mapping[str, str]) -> tuple[str, Table]:
    """A sentence, and a table with a row for each report except the best: its name and the columns of DIFFERENCE_COLUMNS."""
    best, *others = cards
    about = (
        f"compared with the best, {names[best]}, on the same items (95% intervals and p of paired tests, one per file)"
    )
    return about, beside(cards[best], {names[other]: cards[other] for other in others})


def beside(card: CardReport, others: Mapping[str, CardReport]) -> Table:
    """A row for each of the others: its name and the columns of DIFFERENCE_COLUMNS, the other minus `card`."""
    rows = []
    for name, other in others.items():
        found = difference("first", "second", {"first": card, "second": other})
        rows.append((name, *difference_row(found)))
    return Table((FILE_COLUMN, *DIFFERENCE_COLUMNS), rows)


def changed_share(test: Paired | None) -> str | None:
    """A difference of shares in points of a hundred, with its 95% interval."""
    if test is None:
        return None
    estimate, low, high = (_signed(100 * value, 1) for value in (test.estimate, *test.interval.as_list()))
    return f"{estimate} ({low} to {high}) points"


def changed_value(test: Paired | None, decimals: int) -> str | None:
    """A difference with its 95% interval; None if it was not measured on the same items."""
    if test is None:
        return None
    estimate, low, high = (_signed(value, decimals) for value in (test.estimate, *test.interval.as_list()))
    return f"{estimate} ({low} to {high})"


def changed_count(test: McNemar | None) -> str | None:
    """A difference of counts with the p-value of McNemar's test; None if they are not of the same items."""
    return None if test is None else f"{test.second_only - test.first_only:+d} (p = {test.p_value:.2g})"


def _signed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # adding 0 makes -0 +0
