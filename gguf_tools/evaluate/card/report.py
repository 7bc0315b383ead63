"""A card report for people and for programs: lines, a table of several models, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gguf_tools.evaluate.card.compare import Difference, score_interval
from gguf_tools.evaluate.card.modes import Mode
from gguf_tools.evaluate.card.parts import bits_per_byte, overall, parts_of
from gguf_tools.evaluate.card.repetition import NGRAM, longest_loop, repeated_ngrams
from gguf_tools.evaluate.card.results import Answered, CardReport, Generation, Passage
from gguf_tools.evaluate.card.statistics import Interval, bootstrap, wilson

Counted = Sequence[bool]

_MISSING = {
    "perplexity": "there was no text",
    "completion": "there was no text to continue",
    "facts": "there was no question",
    "repetition": "nothing was generated",
}


# -- JSON --------------------------------------------------------------------------------------------------------


def card_dict(report: CardReport) -> dict[str, Any]:
    """What `tinyq eval --json` has under `card`."""
    measured = parts_of(report)
    facts = _part_facts(report)
    parts: dict[str, Any] = {}
    for name, weight in report.weights.items():
        if name in measured:
            parts[name] = {"score": 100.0 * measured[name].score, "weight": weight, **facts[name]}
        else:
            parts[name] = {"score": None, "weight": weight, "missing": _why_missing(report, name)}
    return {
        "score": overall(report),
        "interval": _pair(score_interval(report)),
        "set": report.set_name,
        "mode": report.mode,
        "context": report.context,
        "parts": parts,
        "held_out": share_dict([item.right for item in report.held_out]) if report.held_out else None,
        "answers": [_answer_dict(item) for item in (*report.answers, *report.probes)],
        "held_out_answers": [_answer_dict(item) for item in report.held_out],
        "completions": [
            {"prompt": item.prompt, "text": item.generation.text, "coherent": item.coherent}
            for item in report.completions
        ],
        "notes": notes_of(report),
    }


def share_dict(outcomes: Counted) -> dict[str, Any]:
    """A share with its 95% interval by Wilson's score."""
    right, total = sum(outcomes), len(outcomes)
    return {"right": right, "total": total, "share": right / total, "interval": _pair(wilson(right, total))}


def _part_facts(report: CardReport) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, outcomes in _outcomes(report).items():
        if outcomes:
            found[name] = share_dict(outcomes)
    found["perplexity"] = _text_dict(report.passages)
    found["repetition"] = _repetition_dict(report.generations)
    return found


def _outcomes(report: CardReport) -> dict[str, list[bool]]:
    """The parts that are shares: what was right of what."""
    return {
        "facts": [item.right for item in report.answers],
        "completion": [item.coherent for item in report.completions],
        "thinking": [item.works for item in report.in_mode("thinking")],
        "non_thinking": [item.works for item in report.in_mode("direct")],
    }


def _text_dict(passages: Sequence[Passage]) -> dict[str, Any]:
    values = np.array([(p.nats, p.tokens, p.nats / math.log(2), p.bytes) for p in passages])
    perplexity = bootstrap([values], lambda means: means[0][..., 0] / np.maximum(means[0][..., 1], 1e-300))
    return {
        "perplexity": _exp(perplexity.estimate),
        "interval": [_exp(value) for value in _pair(perplexity.interval)],
        "bits_per_byte": float(bits_per_byte(values[:, 2:].mean(axis=0))),
        "tokens": sum(p.tokens for p in passages),
        "passages": len(passages),
    }


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None  # JSON has no infinity


def _repetition_dict(generations: Sequence[Generation]) -> dict[str, Any]:
    values = np.array([repeated_ngrams(g.tokens) for g in generations], dtype=np.float64)
    share = bootstrap([values], lambda means: means[0][..., 0] / np.maximum(means[0][..., 1], 1e-300))
    loops = [loop for g in generations if (loop := longest_loop(g.tokens))]
    longest = max(loops, key=lambda loop: loop.length, default=None)
    return {
        "repeated_share": share.estimate,
        "interval": _pair(share.interval),
        "ngram": NGRAM,
        "longest_loop": None if longest is None else {"period": longest.period, "tokens": longest.length},
        "endless_loops": sum(g.loop is not None for g in generations),
        "texts": len(generations),
    }


def _answer_dict(item: Answered) -> dict[str, Any]:
    return {
        "question": item.question,
        "mode": item.mode,
        "thought": item.reply.thought,
        "answer": item.reply.answer,
        "right": item.right,
        "reason": item.grade.reason if item.fits else "no room",
        "works": item.works,
        "ended": item.generation.ended,
        "tokens": len(item.generation.tokens),
    }


def difference_dict(found: Difference) -> dict[str, Any]:
    """One comparison for JSON."""
    tests = {name: value and asdict(value) for name, value in vars(found).items() if name not in ("first", "second")}
    return {"first": found.first, "second": found.second, **tests, "verdict": found.verdict}


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


# -- what went wrong ---------------------------------------------------------------------------------------------


def notes_of(report: CardReport) -> list[str]:
    """What was handled rather than measured, each named."""
    notes: list[str] = []
    if not report.modes.template:
        notes.append("the model has no chat template: the questions were asked as plain text, and no mode was tried")
    for mode in ("direct", "thinking", "plain"):
        notes += _mode_notes(report, mode)
    for item in report.completions:
        if item.generation.loop is not None:
            notes.append(f"the continuation of {item.prompt!r} is {_loop_text(item.generation)}")
        elif not item.generation.fits:
            notes.append(f"{item.prompt!r} does not fit the context of {report.context} tokens")
    return notes


def _mode_notes(report: CardReport, mode: Mode) -> list[str]:
    held_out = report.held_out if mode == report.mode else ()
    answers = [*report.in_mode(mode), *held_out]
    asked = {"direct": "without thinking", "thinking": "with thinking", "plain": "as plain text"}[mode]
    room = [item for item in answers if not item.fits]
    loops = [item for item in answers if item.generation.loop is not None]
    cut = [item for item in answers if item.fits and not item.generation.ended and item not in loops]
    open_thought = [item for item in answers if not item.reply.closed]
    empty = [item for item in answers if item.fits and item.grade.reason == "empty" and item not in open_thought]
    found = [
        (room, f"no room in the context of {report.context} tokens"),
        (loops, "an endless loop" + (f", {_loop_text(loops[0].generation)}" if loops else "")),
        (open_thought, "a thought that is never closed"),
        (empty, "an empty answer"),
        (cut, "cut off before its end"),
    ]
    total = len(answers)
    return [f"asked {asked}, {len(items)} of {total}: {what} ({_some(items)})" for items, what in found if items]


def _some(items: Sequence[Answered]) -> str:
    shown = "; ".join(item.question for item in items[:2])
    return shown + (f"; and {len(items) - 2} more" if len(items) > 2 else "")


def _loop_text(generation: Generation) -> str:
    loop = generation.loop
    assert loop is not None
    return f"{loop.period} tokens over and over, {loop.length} in all"


def _why_missing(report: CardReport, name: str) -> str:
    if name in _MISSING:
        return _MISSING[name]
    if not report.modes.template:
        return "the model has no chat template"
    if name == "thinking":
        return "the chat template has no thinking mode"
    return "the chat template always thinks"


# -- text --------------------------------------------------------------------------------------------------------

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
    """The cells under CARD_HEAD."""
    outcomes = _outcomes(report)
    low, high = _pair(score_interval(report))
    facts, text = _part_facts(report), _text_dict(report.passages)
    counted = {name: f"{sum(found)}/{len(found)}" if found else "–" for name, found in outcomes.items()}
    return (
        f"{overall(report):.2f}",
        f"{low:.1f}–{high:.1f}",
        counted["facts"],
        _percents(facts["facts"]["interval"]) if "facts" in facts else "–",
        counted["completion"],
        "–" if text["perplexity"] is None else f"{text['perplexity']:.4g}",
        f"{text['bits_per_byte']:.3f}",
        f"{facts['repetition']['repeated_share']:.1%}",
        counted["thinking"],
        counted["non_thinking"],
    )


def format_card(report: CardReport) -> str:
    """One model's report as aligned lines and notes."""
    found = card_dict(report)
    low, high = found["interval"]
    rows = [("score", f"{found['score']:.2f} of 100   95% interval {low:.1f} to {high:.1f}")]
    labels = {
        "facts": "right",
        "completion": "coherent",
        "thinking": "a closed thought and then an answer",
        "non_thinking": "an answer and no thought",
    }
    for name, part in found["parts"].items():
        title = name.replace("_", "-")
        if part["score"] is None:
            rows.append((title, f"not measured: {part['missing']}"))
        elif name == "perplexity":
            ppl = "more than any float" if part["perplexity"] is None else f"{part['perplexity']:.4g} a token"
            rows.append((title, f"{ppl}, {part['bits_per_byte']:.3f} bits a byte, {part['tokens']} tokens"))
        elif name == "repetition":
            rows.append((title, _repetition_line(part)))
        else:
            rows.append((title, f"{_share_line(part)} {labels[name]}"))
    if found["held_out"]:
        rows.append(("held out", f"{_share_line(found['held_out'])} right"))
    width = max(len(name) for name, _ in rows)
    weights = {name.replace("_", "-"): f"   weight {part['weight']:g}" for name, part in found["parts"].items()}
    lines = [f"{name:<{width}}  {text}{weights.get(name, '')}" for name, text in rows]
    return "\n".join([*lines, *([""] if found["notes"] else []), *(f"note: {note}" for note in found["notes"])])


def _share_line(part: Mapping[str, Any]) -> str:
    return f"{part['right']} of {part['total']} ({part['share']:.0%}, 95% interval {_percents(part['interval'])})"


def _repetition_line(part: Mapping[str, Any]) -> str:
    line = f"{part['repeated_share']:.1%} of the {part['ngram']}-grams of {part['texts']} texts repeat"
    if part["longest_loop"]:
        line += f", longest loop {part['longest_loop']['tokens']} tokens"
    return line


def _percents(interval: Sequence[float]) -> str:
    return f"{interval[0]:.0%}–{interval[1]:.0%}"


def format_difference(found: Difference) -> str:
    """One line: what is shown, and the numbers that it rests on."""
    numbers = []
    if found.score is not None:
        low, high = _pair(found.score.interval)
        numbers.append(f"score {found.score.estimate:+.2f} ({low:+.1f} to {high:+.1f})")
    for name, test in (("facts", found.facts), ("held out", found.held_out)):
        if test is not None:
            numbers.append(f"{name} {test.second_only - test.first_only:+d} (p = {test.p_value:.2g})")
    if found.bits is not None:
        numbers.append(f"bits/byte {found.bits.estimate:+.3f}")
    return f"{found.verdict}: {', '.join(numbers)}"


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "<>") -> str:
    """A Markdown table; `align` as in `commands.common.table`."""
    sides = align.ljust(len(head), align[-1])
    rule = [":---" if side == "<" else "---:" for side in sides]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a line of all names; a cell is empty where a row lacks that name."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def flat_card(report: CardReport) -> dict[str, Any]:
    """The card's numbers under names with dots, for a line of CSV."""
    found = card_dict(report)
    flat: dict[str, Any] = {"score": found["score"]}
    flat["score.low"], flat["score.high"] = found["interval"]
    for name, part in found["parts"].items():
        flat[name] = part["score"]
        for key in ("right", "total", "perplexity", "bits_per_byte", "repeated_share"):
            if key in part and key != name:
                flat[f"{name}.{key}"] = part[key]
    held = found["held_out"] or {"right": None, "total": None}
    return {**flat, "held_out.right": held["right"], "held_out.total": held["total"]}
