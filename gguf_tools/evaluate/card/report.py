"""A card report for people and for programs: lines, a table of several models, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gguf_tools.evaluate.card.compare import Difference, score_interval
from gguf_tools.evaluate.card.modes import Mode
from gguf_tools.evaluate.card.parts import bits_per_byte, overall, parts_of
from gguf_tools.evaluate.card.repetition import NGRAM, Loop, longest_loop, repeated_ngrams
from gguf_tools.evaluate.card.results import Answered, CardReport, Generation, Passage
from gguf_tools.evaluate.card.statistics import Interval, McNemar, Paired, bootstrap, wilson
from gguf_tools.evaluate.fidelity import TEXT_CHUNK
from gguf_tools.text import table

Counted = Sequence[bool]

_ASKED: Mapping[Mode, str] = {"direct": "without thinking", "thinking": "with thinking", "plain": "as plain text"}

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
    """What is known of each part that was measured, beside its score."""
    found = {name: share_dict(outcomes) for name, outcomes in _outcomes(report).items() if outcomes}
    if report.passages:
        found["perplexity"] = _text_dict(report.passages)
    if report.generations:
        found["repetition"] = _repetition_dict(report.generations)
    return found


def _outcomes(report: CardReport) -> dict[str, list[bool]]:
    """The parts that are shares: what was right of what."""
    return {
        "facts": [item.right for item in report.answers],
        "completion": [item.coherent for item in report.completions],
        "thinking": [item.works for item in report.promised("thinking")],
        "non_thinking": [item.works for item in report.promised("direct")],
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
        "longest_loop": _loop_dict(longest),
        "endless_loops": sum(g.loop is not None for g in generations),
        "texts": len(generations),
    }


def _loop_dict(loop: Loop | None) -> dict[str, int] | None:
    return None if loop is None else {"period": loop.period, "tokens": loop.length}


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
        "endless_loop": _loop_dict(item.generation.loop),
    }


def difference_dict(found: Difference) -> dict[str, Any]:
    """One comparison for JSON."""
    tests = {"score": found.score, "facts": found.facts, "bits": found.bits, "held_out": found.held_out}
    return {
        "first": found.first,
        "second": found.second,
        "verdict": found.verdict,
        **{name: None if test is None else _test_dict(test) for name, test in tests.items()},
    }


def _test_dict(test: Paired | McNemar) -> dict[str, Any]:
    interval = {"interval": _pair(test.interval)} if isinstance(test, Paired) else {}
    return {**asdict(test), **interval, "shown": test.shown}


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


# -- what went wrong ---------------------------------------------------------------------------------------------


def notes_of(report: CardReport) -> list[str]:
    """What was handled rather than measured, each named."""
    notes: list[str] = []
    if not report.modes.template:
        notes.append("the model has no chat template: the questions were asked as plain text, and no mode was tried")
    cut = sum(passage.pieces > 1 for passage in report.passages)
    if cut:
        notes.append(
            f"{cut} of {len(report.passages)} passages were cut into pieces that fit (at most {report.context} tokens and"
            f" {TEXT_CHUNK}), which makes the perplexity worse"
        )
    for mode, asked in _ASKED.items():
        held_out = report.held_out if mode == report.mode else ()
        answers = [*report.in_mode(mode), *held_out]
        notes += _grouped(f"asked {asked}", [(item.question, _answer_fault(report, item)) for item in answers])
    faults = [
        (item.prompt, _fault(report, item.generation) or (None if item.generation.tokens else "an empty continuation"))
        for item in report.completions
    ]
    return notes + _grouped("continued", faults)


def _answer_fault(report: CardReport, item: Answered) -> str | None:
    """The first thing that went wrong with an answer, whether it is right or not."""
    fault = _fault(report, item.generation)
    if fault:
        return fault
    if not item.reply.closed:
        return "a thought that is never closed"
    if item.grade.reason == "empty":
        return "an empty answer"
    if not item.generation.ended:
        return "cut off before its end"
    if item.mode == "thinking" and not item.reply.thought:
        return "no thought"
    if item.mode == "direct" and item.reply.thought and not report.modes.undecided:
        return "a thought that was not asked for"
    return None


def _fault(report: CardReport, generation: Generation) -> str | None:
    """What can go wrong with any text."""
    if not generation.fits:
        return f"no room in the context of {report.context} tokens"
    return "an endless loop" if generation.loop else None


def _grouped(asked: str, faults: Sequence[tuple[str, str | None]]) -> list[str]:
    """A note for each kind of fault, with some of the texts that have it."""
    by_fault: dict[str, list[str]] = {}
    for text, fault in faults:
        if fault:
            by_fault.setdefault(fault, []).append(textwrap.shorten(text, 60, placeholder=" …"))
    notes = []
    for fault, texts in by_fault.items():
        more = f"; and {len(texts) - 2} more" if len(texts) > 2 else ""
        notes.append(f"{asked}, {len(texts)} of {len(faults)}: {fault} ({'; '.join(texts[:2])}{more})")
    return notes


def _why_missing(report: CardReport, name: str) -> str:
    if name in _MISSING:
        return _MISSING[name]
    if not report.modes.template:
        return "the model has no chat template"
    if report.modes.undecided:
        return "the chat template leaves it to the model whether to think"
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
    found = _part_facts(report)
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
    """The cells under HELD_OUT_HEAD."""
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
    rows += [("held out", "–", _points(held_out), _share_text(held_out, "right"))] if held_out else []
    asked = "question" if len(report.answers) == 1 else "questions"
    lines = [
        f"score {found['score']:.2f} of 100, 95% interval {low:.1f} to {high:.1f}",
        f"{len(report.answers)} {asked} of the set {report.set_name}, asked {_ASKED[report.mode]}",
        "",
        table(("part", "weight", "points", ""), rows, "<>><"),
        *([""] if found["notes"] else []),
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(lines)


def _points(part: Mapping[str, Any]) -> str:
    points = part["score"] if "score" in part else 100 * part["share"]
    return "–" if points is None else f"{points:.1f}"


def _share_text(part: Mapping[str, Any], what: str) -> str:
    return f"{part['right']} of {part['total']} {what} ({part['share']:.0%}, {_within(part, _percent)})"


def _text_text(part: Mapping[str, Any]) -> str:
    perplexity = f"{_number(part['perplexity'])} a token ({_within(part, _number)})"
    return f"{perplexity}, {part['bits_per_byte']:.3f} bits a byte, {part['tokens']} tokens"


def _repetition_text(part: Mapping[str, Any]) -> str:
    share = f"{part['repeated_share']:.1%} of the {part['ngram']}-grams of {part['texts']} texts repeat"
    loop = part["longest_loop"]
    within = _within(part, lambda value: f"{value:.1%}")
    return f"{share} ({within})" + (f", longest loop {loop['tokens']} tokens" if loop else "")


def _measured(describe: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda part: f"not measured: {part['missing']}" if "missing" in part else describe(part)


_PART_TEXTS = {
    "facts": _measured(lambda part: _share_text(part, "right")),
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
    """The cells under DIFFERENCE_HEAD: differences with their 95% intervals or p-values."""
    return (
        _change(found.score, 2),
        _changed_count(found.facts),
        _changed_count(found.held_out),
        _change(found.bits, 3),
        found.verdict,
    )


def format_difference(found: Difference) -> str:
    """One line: what is shown, and the numbers that it rests on."""
    *cells, verdict = difference_row(found)
    numbers = [f"{name} {cell}" for name, cell in zip(DIFFERENCE_HEAD, cells, strict=False) if cell != "–"]
    return f"{verdict}: {', '.join(numbers)}" if numbers else verdict


def _change(test: Paired | None, decimals: int) -> str:
    if test is None:
        return "–"
    estimate, low, high = (_signed(value, decimals) for value in (test.estimate, *_pair(test.interval)))
    return f"{estimate} ({low} to {high})"


def _changed_count(test: McNemar | None) -> str:
    return "–" if test is None else f"{test.second_only - test.first_only:+d} (p = {test.p_value:.2g})"


def _signed(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"  # adding 0 makes -0 +0


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
    for name, part in {**found["parts"], "held_out": found["held_out"] or {}}.items():
        for key in ("score", "right", "total", "perplexity", "bits_per_byte", "repeated_share"):
            if key in part:
                flat[f"{name}.{key}"] = part[key]
        if "interval" in part:
            flat[f"{name}.low"], flat[f"{name}.high"] = part["interval"]
    return flat
