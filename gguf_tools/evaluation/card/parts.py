"""The parts of a card's score: what is measured item by item, and how the items' means become a score.

The items (questions, texts, passages) are rows of tables, and a part is a function of the columns' means. So a score, its
interval and the difference of two models come from the same numbers, by drawing items anew; and an item goes into all
parts at once, because a question that meets a broken answer loses in several of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError
from gguf_tools.evaluation.card.modes import Mode
from gguf_tools.evaluation.card.repetition import repeated_ngrams
from gguf_tools.evaluation.card.results import CardReport

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

MOST_WEIGHT = 1_000_000
"""Far larger ones overflow when they are summed."""

WORST_BITS = 4.0
"""Bits a byte at which a perplexity is worth nothing: about what the frequencies of single letters give for English."""

DECIMALS = 2
"""Decimals of a score: below lies what rounding to float16 changes."""


Means = Mapping[str, Float]
"""Kind of item → the means of its columns, (…, columns); the kinds and columns are those of `samples_of`."""


@dataclass(frozen=True)
class ScorePart:
    """One part of one model: its own score, 0 to 1, and the same as a function of means, (…)."""

    name: str
    score: float
    score_of: Callable[[Means], Float]


def checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The default weights with some replaced; InputError for a part that is not there, or a weight out of range."""
    for name, weight in weights.items():
        if name not in DEFAULT_WEIGHTS:
            raise InputError(f"there is no part {name!r} to weigh; parts are {', '.join(DEFAULT_WEIGHTS)}")
        if not 0 <= weight <= MOST_WEIGHT:
            raise InputError(f"the weight of {name} is {weight}; a number from 0 to {MOST_WEIGHT:,} is expected")
    merged = {**DEFAULT_WEIGHTS, **weights}
    if not sum(merged.values()):
        raise InputError("all parts weigh 0; at least one must count")
    return merged


def samples_of(report: CardReport) -> dict[str, Float]:
    """All that was measured by kind of item, (items, columns); kinds of which there is nothing are left out.

    The columns of a generated text are [right, works, repeated n-grams, n-grams], those of a passage [bits, bytes].
    """
    rows = {
        "answers": [(a.right, a.works, *repeated_ngrams(a.generation.tokens)) for a in report.answers],
        "probes": [(a.right, a.works, *repeated_ngrams(a.generation.tokens)) for a in report.probes],
        "completions": [(c.coherent, c.coherent, *repeated_ngrams(c.generation.tokens)) for c in report.completions],
        "passages": [(p.nats / math.log(2), p.bytes) for p in report.passages],
    }
    return {kind: np.array(found, dtype=np.float64) for kind, found in rows.items() if found}


def parts_of(report: CardReport) -> dict[str, ScorePart]:
    """The parts that were measured, by name, in the order of the weights."""
    samples = samples_of(report)
    texts = {kind: len(sample) for kind, sample in samples.items() if kind != "passages"}

    def works(mode: Mode) -> Callable[[Means], Float]:
        return _share("answers" if mode == report.mode else "probes", 1)

    measured: dict[str, tuple[Sequence[object], Callable[[Means], Float]]] = {
        "facts": (report.answers, _share("answers", 0)),
        "completion": (report.completions, _share("completions", 0)),
        "perplexity": (report.passages, lambda means: _from_bits(means["passages"])),
        "repetition": (report.generations, lambda means: _from_repeats(means, texts)),
        "thinking": (report.promised("thinking"), works("thinking")),
        "non_thinking": (report.promised("direct"), works("direct")),
    }
    means = means_of(samples)
    return {name: ScorePart(name, float(score(means)), score) for name, (items, score) in measured.items() if items}


def means_of(samples: Mapping[str, Float]) -> Means:
    """The means of the items as they are."""
    return {kind: sample.mean(axis=0) for kind, sample in samples.items()}


def score_of(report: CardReport) -> Callable[[Means], Float]:
    """A function from means, (…, columns), to the overall score (…), 0 to 100; InputError where no part has a weight."""
    used = [(report.weights[name], part.score_of) for name, part in parts_of(report).items()]
    whole = sum(weight for weight, _ in used)
    if not whole:
        raise InputError("no part with a weight could be measured; give another part a weight")

    def combine(means: Means) -> Float:
        total = sum(weight * score(means) for weight, score in used)
        result: Float = 100.0 * np.asarray(total) / whole
        return result

    return combine


def overall(report: CardReport) -> float:
    """The score, 0 to 100, to two decimals."""
    return round(float(score_of(report)(means_of(samples_of(report)))), DECIMALS)


def bits_per_byte(means: Float) -> Float:
    """Bits a byte of text from the means (…, [bits, bytes])."""
    result: Float = means[..., 0] / np.maximum(means[..., 1], 1e-300)
    return result


def _share(kind: str, column: int) -> Callable[[Means], Float]:
    return lambda means: means[kind][..., column]


def _from_bits(means: Float) -> Float:
    return np.clip(1.0 - bits_per_byte(means) / WORST_BITS, 0.0, 1.0)


def _from_repeats(means: Means, texts: Mapping[str, int]) -> Float:
    repeated, ngrams = (sum(count * means[kind][..., column] for kind, count in texts.items()) for column in (2, 3))
    # Nothing written at all is no merit.
    return np.where(ngrams > 0, 1.0 - repeated / np.maximum(ngrams, 1e-300), 0.0)
