"""The parts of a card's score: what each one measures item by item, and how the items' means become a score.

A part is a table of values, one row an item (a question, a text, a passage), and a function of the columns' means. So a
score, its interval and the difference of two models come from the same numbers, by drawing items anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError
from gguf_tools.evaluate.card.repetition import repeated_ngrams
from gguf_tools.evaluate.card.results import CardReport

Float = npt.NDArray[np.float64]

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "facts": 40.0,
    "completion": 15.0,
    "perplexity": 15.0,
    "repetition": 10.0,
    "thinking": 10.0,
    "non_thinking": 10.0,
}
"""Part → weight. A part that a model lacks is left out, and the others keep their proportions."""

WORST_BITS = 4.0
"""Bits a byte at which a perplexity is worth nothing: about what the frequencies of single letters give for English."""

DECIMALS = 2
"""Decimals of a score: below lies what rounding to float16 changes."""


@dataclass(frozen=True)
class Part:
    """One part of one model: values (items, columns), and the score (…) of their means (…, columns), 0 to 1."""

    name: str
    values: Float
    score_of: Callable[[Float], Float]

    @property
    def score(self) -> float:
        """The part's own score, 0 to 1."""
        return float(self.score_of(self.values.mean(axis=0)))


def checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The default weights with some replaced; InputError for a part that is not there, or a weight below 0."""
    for name, weight in weights.items():
        if name not in DEFAULT_WEIGHTS:
            raise InputError(f"there is no part {name!r} to weigh; parts are {', '.join(DEFAULT_WEIGHTS)}")
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"the weight of {name} is {weight}; a number from 0 is expected")
    merged = {**DEFAULT_WEIGHTS, **weights}
    if not sum(merged.values()):
        raise InputError("all parts weigh 0; at least one must count")
    return merged


def parts_of(report: CardReport) -> dict[str, Part]:
    """The parts that were measured, by name, in the order of the weights."""
    values: dict[str, tuple[Float, Callable[[Float], Float]]] = {
        "facts": (_shares(answer.right for answer in report.answers), _first),
        "completion": (_shares(item.coherent for item in report.completions), _first),
        "perplexity": (_columns((p.nats / math.log(2), p.bytes) for p in report.passages), _from_bits),
        "repetition": (_columns(repeated_ngrams(g.tokens) for g in report.generations), _from_repeats),
        "thinking": (_shares(answer.works for answer in report.promised("thinking")), _first),
        "non_thinking": (_shares(answer.works for answer in report.promised("direct")), _first),
    }
    return {name: Part(name, *found) for name, found in values.items() if found[0].size}


def score_of(parts: Sequence[Part], weights: Mapping[str, float]) -> Callable[[Sequence[Float]], Float]:
    """A function from each part's means, (…, columns), to the overall score (…), 0 to 100."""
    used = [weights[part.name] for part in parts]
    if not sum(used):
        raise InputError("no part with a weight could be measured; give another part a weight")

    def combine(means: Sequence[Float]) -> Float:
        total = sum(weight * part.score_of(mean) for weight, part, mean in zip(used, parts, means, strict=True))
        result: Float = 100.0 * np.asarray(total) / sum(used)
        return result

    return combine


def overall(report: CardReport) -> float:
    """The score, 0 to 100, to two decimals."""
    parts = list(parts_of(report).values())
    means = [part.values.mean(axis=0) for part in parts]
    return round(float(score_of(parts, report.weights)(means)), DECIMALS)


def bits_per_byte(means: Float) -> Float:
    """Bits a byte of text from the means (…, [bits, bytes])."""
    result: Float = means[..., 0] / np.maximum(means[..., 1], 1e-300)
    return result


def _first(means: Float) -> Float:
    return means[..., 0]


def _from_bits(means: Float) -> Float:
    return np.clip(1.0 - bits_per_byte(means) / WORST_BITS, 0.0, 1.0)


def _from_repeats(means: Float) -> Float:
    # Nothing written at all is no merit.
    return np.where(means[..., 1] > 0, 1.0 - means[..., 0] / np.maximum(means[..., 1], 1e-300), 0.0)


def _shares(outcomes: Any) -> Float:
    return _columns((float(outcome),) for outcome in outcomes)


def _columns(rows: Any) -> Float:
    return np.array([tuple(row) for row in rows], dtype=np.float64)
