"""A card report as JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gguf_tools.evaluation.card.compare import Difference, score_interval
from gguf_tools.evaluation.card.constants import best_constant, by_kind
from gguf_tools.evaluation.card.notes import notes_of
from gguf_tools.evaluation.card.parts import bits_per_byte, extremes_of, overall, parts_of, samples_of
from gguf_tools.evaluation.card.power import power_of
from gguf_tools.evaluation.card.repetition import NGRAM, Loop, longest_loop
from gguf_tools.evaluation.card.results import Answered, CardReport, outcomes_of
from gguf_tools.evaluation.card.statistics import McNemar, Paired, bootstrap, clopper_pearson

Counted = Sequence[bool]

_MISSING = {
    "perplexity": "no text was given",
    "completion": "no text to continue was given",
    "facts": "no question was given",
    "repetition": "nothing was generated",
}


def card_dict(report: CardReport) -> dict[str, Any]:
    """The value of `card` in the JSON of `tinyq eval --json`."""
    measured = parts_of(report)
    facts = part_facts(report)
    parts: dict[str, Any] = {}
    for name, weight in report.weights.items():
        if name in measured:
            parts[name] = {"score": 100.0 * measured[name].score, "weight": weight, **facts[name]}
        else:
            parts[name] = {"score": None, "weight": weight, "missing": _why_missing(report, name)}
    return {
        "score": overall(report),
        "interval": score_interval(report).as_list(),
        "set": report.set_name,
        "mode": report.mode,
        "context": report.context,
        "digests": dict(report.digests),
        "tokens": dict(report.tokens),
        "parts": parts,
        "held_out": answers_dict(report.held_out) if report.held_out else None,
        "answers": [answer_dict(item) for item in (*report.answers, *report.probes)],
        "held_out_answers": [answer_dict(item) for item in report.held_out],
        "completions": [
            {"prompt": item.prompt, "text": item.generation.text, "coherent": item.coherent}
            for item in report.completions
        ],
        "passages": [{"nats": item.nats, "tokens": item.tokens, "bytes": item.bytes} for item in report.passages],
        "power": power_of(report).as_dict(),
        "notes": notes_of(report),
    }


def share_dict(outcomes: Counted) -> dict[str, Any]:
    """A share with its 95% interval by Clopper and Pearson."""
    right, total = sum(outcomes), len(outcomes)
    return {"right": right, "total": total, "share": right / total, "interval": clopper_pearson(right, total).as_list()}


def answers_dict(answers: Sequence[Answered]) -> dict[str, Any]:
    """The share of right answers, with that of the best constant answer, for all questions and under `kinds` for each kind."""

    def told(items: Sequence[Answered]) -> dict[str, Any]:
        return {
            **share_dict([item.right for item in items]),
            "constant": asdict(best_constant([item.expected for item in items])),
        }

    kinds = by_kind(item.expected for item in answers)
    return told(answers) | {"kinds": {kind: told([answers[n] for n in places]) for kind, places in kinds.items()}}


def part_facts(report: CardReport) -> dict[str, dict[str, Any]]:
    """Facts about each measured part besides its score."""
    found = {name: share_dict(outcomes) for name, outcomes in outcomes_of(report).items() if outcomes}
    if report.answers:
        found["facts"] = answers_dict(report.answers)
    if report.passages:
        found["perplexity"] = _text_dict(report)
    if report.generations:
        found["repetition"] = _repetition_dict(report)
    return found


def _text_dict(report: CardReport) -> dict[str, Any]:
    """Perplexity and bits per byte over all passages, each with its 95% interval."""
    samples = samples_of(report)["passages"]
    tokens = sum(passage.tokens for passage in report.passages)
    bits = bootstrap([samples], lambda means: bits_per_byte(means[0]), [extremes_of({"passages": samples})["passages"]])
    # Both intervals are the same one: the tokens of a text are given.
    scale = math.log(2) * sum(passage.bytes for passage in report.passages) / tokens
    return {
        "perplexity": _exp(bits.estimate * scale),
        "interval": [_exp(end * scale) for end in bits.interval.as_list()],
        "bits_per_byte": bits.estimate,
        "bits_interval": bits.interval.as_list(),
        "tokens": tokens,
        "passages": len(report.passages),
    }


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None  # JSON has no infinity


def _repetition_dict(report: CardReport) -> dict[str, Any]:
    """The share of repeated n-grams over all texts with its 95% bootstrap interval, and the loops; lengths in tokens."""
    generations = report.generations
    texts = {kind: sample for kind, sample in samples_of(report).items() if kind != "passages"}
    every = np.concatenate(list(texts.values()))
    share = bootstrap(
        [every],
        lambda means: means[0][..., 2] / np.maximum(means[0][..., 3], 1e-300),
        [extremes_of({"texts": every})["texts"]],
    )
    loops = [loop for g in generations if (loop := longest_loop(g.tokens))]
    longest = max(loops, key=lambda loop: loop.length, default=None)
    return {
        "repeated_share": share.estimate,
        "interval": share.interval.as_list(),
        "ngram": NGRAM,
        "longest_loop": _loop_dict(longest),
        "endless_loops": sum(g.loop is not None for g in generations),
        "texts": len(generations),
    }


def _loop_dict(loop: Loop | None) -> dict[str, int] | None:
    return None if loop is None else {"period": loop.period, "tokens": loop.length}


def answer_dict(item: Answered) -> dict[str, Any]:
    """One question and its answer for JSON; `tokens` counts those of thought and answer."""
    return {
        "question": item.question,
        "kind": item.expected.kind,
        "expected": item.expected.text,
        "mode": item.mode,
        "thought": item.reply.thought,
        "answer": item.reply.answer,
        "right": item.right,
        "reason": item.grade.reason if item.fits else "no room",
        "read": item.grade.read,
        "likelihoods": None if item.likelihoods is None else list(item.likelihoods),
        "works": item.works,
        "ended": item.generation.ended,
        "tokens": len(item.generation.tokens),
        "endless_loop": _loop_dict(item.generation.loop),
    }


def difference_dict(found: Difference) -> dict[str, Any]:
    """One comparison for JSON; `lost` and `gained` list the questions that only the first, or the second, answers right."""
    tests = {"score": found.score, "facts": found.facts, "bits": found.bits, "held_out": found.held_out}
    return {
        "first": found.first,
        "second": found.second,
        "verdict": found.verdict,
        **{name: None if test is None else _test_dict(test) for name, test in tests.items()},
        "lost": None if found.flipped is None else list(found.flipped.lost),
        "gained": None if found.flipped is None else list(found.flipped.gained),
    }


def _test_dict(test: Paired | McNemar) -> dict[str, Any]:
    interval = {"interval": test.interval.as_list()} if isinstance(test, Paired) else {}
    return {**asdict(test), **interval, "shown": test.shown}


def _why_missing(report: CardReport, name: str) -> str:
    if name in _MISSING:
        return _MISSING[name]
    if not report.modes.template:
        return "the model has no chat template"
    if report.modes.undecided:
        return "the chat template lets the model decide whether to think"
    if name == "thinking":
        return "the chat template has no thinking mode"
    return "the chat template always asks for a thought"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header of all column names; a cell is empty if its row does not have the column."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def flat_card(report: CardReport) -> dict[str, Any]:
    """The card's numbers with nested names joined by dots, for one row of CSV."""
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
