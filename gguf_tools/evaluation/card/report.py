"""A card report as text: lines and tables for one or several models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gguf_tools.evaluation.card.as_json import card_dict, outcomes_of, part_facts, share_dict
from gguf_tools.evaluation.card.compare import Difference, difference, score_interval
from gguf_tools.evaluation.card.notes import ASKED
from gguf_tools.evaluation.card.parts import overall
from gguf_tools.evaluation.card.power import power_of
from gguf_tools.evaluation.card.results import CardReport
from gguf_tools.evaluation.card.statistics import McNemar, Paired
from gguf_tools.text import table

CARD_HEAD = (
    "score",
    "95%",
    "facts",
    "95%",
    "completion",
    "perplexity",
    "bits/byte",
    "repeated",
    "thinking",
    "non-thinking",
)


def card_row(report: CardReport) -> tuple[str, ...]:
    """One table row with the columns of CARD_HEAD."""
    outcomes = outcomes_of(report)
    low, high = score_interval(report).as_list()
    found = part_facts(report)
    counted = {name: f"{sum(right)}/{len(right)}" if right else "–" for name, right in outcomes.items()}
    text, repetition = found.get("perplexity"), found.get("repetition")
    return (
        f"{overall(report):.2f}",
        f"{low:.1f}–{high:.1f}",
        counted["facts"],
        _percents(found["facts"]["interval"]) if "facts" in found else "–",
        counted["completion"],
        _number(text["perplexity"]) if text else "–",
        f"{text['bits_per_byte']:.3f}" if text else "–",
        f"{repetition['repeated_share']:.1%}" if repetition else "–",
        counted["thinking"],
        counted["non_thinking"],
    )


HELD_OUT_HEAD = ("held out", "95%")


def held_out_row(report: CardReport) -> tuple[str, ...]:
    """One table row with the columns of HELD_OUT_HEAD."""
    if not report.held_out:
        return ("–", "–")
    found = share_dict([item.right for item in report.held_out])
    return (f"{found['right']}/{found['total']}", _percents(found["interval"]))


def format_card(report: CardReport) -> str:
    """One model's report: the score, a table of its parts, and notes."""
    found = card_dict(report)
    low, high = found["interval"]
    held_out = found["held_out"]
    rows = [
        (name.replace("_", "-"), f"{part['weight']:g}", _points(part), _PART_TEXTS[name](part))
        for name, part in found["parts"].items()
    ]
    rows += [("held out", "–", _points(held_out), answers_text(held_out))] if held_out else []
    asked = "question" if len(report.answers) == 1 else "questions"
    lines = [
        f"score {found['score']:.2f} of 100, 95% interval {low:.1f} to {high:.1f}",
        f"{len(report.answers)} {asked} of the set {report.set_name}, asked {ASKED[report.mode]}",
        "",
        table(("part", "weight", "points", ""), rows, "<>><"),
        *kind_lines(found["parts"]["facts"]),
        *(["", reach] if (reach := power_text(report)) else []),
        *([""] if found["notes"] else []),
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(lines)


def power_text(report: CardReport) -> str:
    """What the report's items can show at all, in lines; "" for none."""
    said = power_of(report).sentences()
    return "\n".join(["what these items can show:", *(f"  {line}" for line in said)]) if said else ""


def _points(part: Mapping[str, Any]) -> str:
    points = part["score"] if "score" in part else 100 * part["share"]
    return "–" if points is None else f"{points:.1f}"


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
    if perplexity is None:
        return "∞"
    return f"{perplexity:.3f}" if perplexity < 1000 else f"{perplexity:.4g}"


DIFFERENCE_HEAD = ("score", "facts", "held out", "bits/byte", "verdict")


def difference_row(found: Difference) -> tuple[str, ...]:
    """One table row with the columns of DIFFERENCE_HEAD: differences with 95% intervals or p-values."""
    return (
        _change(found.score, 2),
        _changed_count(found.facts),
        _changed_count(found.held_out),
        _change(found.bits, 3),
        found.verdict,
    )


DIFFERENCE_ALIGN = "<>>>><"
"""Alignment of a column of names and of those of DIFFERENCE_HEAD."""


def beside_the_best(cards: Mapping[str, CardReport], names: Mapping[str, str]) -> tuple[str, list[tuple[str, ...]]]:
    """A sentence, and a row for each report except the best: its name and the columns of DIFFERENCE_HEAD."""
    best, *others = cards
    about = (
        f"compared with the best, {names[best]}, on the same items (95% intervals and p of paired tests, one per file)"
    )
    return about, [(names[other], *difference_row(difference(best, other, cards))) for other in others]


def _change(test: Paired | None, decimals: int) -> str:
    if test is None:
        return "–"
    estimate, low, high = (_signed(value, decimals) for value in (test.estimate, *test.interval.as_list()))
    return f"{estimate} ({low} to {high})"


def _changed_count(test: McNemar | None) -> str:
    return "–" if test is None else f"{test.second_only - test.first_only:+d} (p = {test.p_value:.2g})"


def _signed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # adding 0 makes -0 +0
