"""The parts of a card's score: the measurements per item, and how their means are combined into a score.

The items (questions, texts, passages) are rows of tables, and a part is a function of the column means. A score, its
interval and the difference of two models are thus computed from the same tables by resampling rows. A resampled item affects
all parts together, because a broken answer lowers several of them.
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
from gguf_tools.evaluation.card.statistics import apart, reach
from gguf_tools.text import expected

Float = npt.NDArray[np.float64]

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "facts": 40.0,
    "completion": 15.0,
    "perplexity": 15.0,
    "repetition": 10.0,
    "thinking": 10.0,
    "non_thinking": 10.0,
}
"""Part → weight. A part that was not measured is left out, and the weights of the others are rescaled."""

MOST_WEIGHT = 1_000_000
"""Largest weight accepted; sums of much larger ones overflow."""

WORST_BITS = 4.0
"""Bits per byte at which the perplexity part scores 0: about the entropy of single letters in English."""

FEW_PASSAGES = 6
"""Fewer passages than these do not tell how far another may lie beyond them."""

DECIMALS = 2
"""Decimals of a score; rounding weights to float16 changes less than the last of them."""


Means = Mapping[str, Float]
"""Kind of item → means of its columns, shape (…, columns); kinds and columns as in `samples_of`."""


@dataclass(frozen=True)
class ScorePart:
    """One part of one model's score: its value, 0 to 1, and `score_of`, the same as a function of means, of shape (…)."""

    name: str
    score: float
    score_of: Callable[[Means], Float]


def checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The default weights with some replaced. Raises InputError for an unknown part, or a weight out of range."""
    for name, weight in weights.items():
        if name not in DEFAULT_WEIGHTS:
            raise InputError(f"part {name!r} is not known; {expected(name, DEFAULT_WEIGHTS)}")
        if not 0 <= weight <= MOST_WEIGHT:
            raise InputError(f"the weight of {name} is {weight}; expected a number from 0 to {MOST_WEIGHT:,}")
    merged = {**DEFAULT_WEIGHTS, **weights}
    if not sum(merged.values()):
        raise InputError("all weights are 0; expected at least one above 0")
    return merged


def samples_of(report: CardReport) -> dict[str, Float]:
    """The measurements by kind of item, each of shape (items, columns); kinds without items are omitted.

    The columns of a generated text are [right, works, repeated n-grams, n-grams], those of a passage [bits, bytes].
    """
    rows = {
        "answers": [(a.right, a.works, *repeated_ngrams(a.generation.tokens)) for a in report.answers],
        "probes": [(a.right, a.works, *repeated_ngrams(a.generation.tokens)) for a in report.probes],
        "completions": [(c.coherent, c.coherent, *repeated_ngrams(c.generation.tokens)) for c in report.completions],
        "passages": [(p.nats / math.log(2), p.bytes) for p in report.passages],
    }
    return {kind: np.array(found, dtype=np.float64) for kind, found in rows.items() if found}


def extremes_of(samples: Mapping[str, Float]) -> dict[str, Float]:
    """The worst and the best item that one more could be, (2, columns) for each kind of item; see `statistics.bootstrap`.

    A text is wrong and one repetition, or right and none, and as long as the longest of its kind; a passage lies as far beyond
    those seen as `reach` says, or anywhere from 0 to `WORST_BITS` if they are too few to tell, or all alike.
    """
    return {kind: _passage_ends(s) if kind == "passages" else _text_ends(s) for kind, s in samples.items()}


def _text_ends(sample: Float) -> Float:
    ngrams = max(sample[:, 3].max(), 1.0)
    return np.array([[0.0, 0.0, ngrams, ngrams], [1.0, 1.0, 0.0, ngrams]])


def _passage_ends(sample: Float) -> Float:
    size = max(sample[:, 1].max(), 1.0)
    bits = bits_per_byte(sample)
    best, worst = reach(bits)
    if best == worst or len(bits) < FEW_PASSAGES:
        best, worst = 0.0, max(WORST_BITS, worst)
    return np.array([[worst * size, size], [max(best, 0.0) * size, size]])


def paired_extremes(before: Mapping[str, Float], after: Mapping[str, Float]) -> dict[str, Float]:
    """One more answer on which the second model is worst and the first best, or the other way round; (2, 2 · columns) each.

    For passages, the difference lies as far beyond those seen as `reach` says; of the other kinds one more item is like the
    mean of both models, unless no question was asked: the test of `paired_difference` knows of one more item too (with one
    kind of item, the interval excludes 0 where the test does).
    """
    found = {}
    for kind in before:
        if kind == "passages":
            found[kind] = apart(before[kind], after[kind])[::-1]  # more bits are worse
        elif kind == "answers" or "answers" not in before:
            worst, best = _text_ends(np.concatenate([before[kind], after[kind]]))
            found[kind] = np.array([[*best, *worst], [*worst, *best]])
        else:
            found[kind] = np.array([[*before[kind].mean(axis=0), *after[kind].mean(axis=0)]] * 2)
    return found


def parts_of(report: CardReport) -> dict[str, ScorePart]:
    """The measured parts by name, in the order of `DEFAULT_WEIGHTS`."""
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
    """The column means over all items, without resampling."""
    return {kind: sample.mean(axis=0) for kind, sample in samples.items()}


def score_of(report: CardReport) -> Callable[[Means], Float]:
    """A function from means (…, columns) to overall scores (…), 0 to 100. Raises InputError if no measured part has a weight."""
    used = [(report.weights[name], part.score_of) for name, part in parts_of(report).items()]
    whole = sum(weight for weight, _ in used)
    if not whole:
        raise InputError("no part with a weight above 0 could be measured; give another part a weight")

    def combine(means: Means) -> Float:
        total = sum(weight * score(means) for weight, score in used)
        result: Float = 100.0 * np.asarray(total) / whole
        return result

    return combine


def overall(report: CardReport) -> float:
    """The overall score, 0 to 100, rounded to two decimals."""
    return round(float(score_of(report)(means_of(samples_of(report)))), DECIMALS)


def bits_per_byte(means: Float) -> Float:
    """Bits per byte of text from the means (…, [bits, bytes])."""
    result: Float = means[..., 0] / np.maximum(means[..., 1], 1e-300)
    return result


def _share(kind: str, column: int) -> Callable[[Means], Float]:
    return lambda means: means[kind][..., column]


def _from_bits(means: Float) -> Float:
    return np.clip(1.0 - bits_per_byte(means) / WORST_BITS, 0.0, 1.0)


def _from_repeats(means: Means, texts: Mapping[str, int]) -> Float:
    repeated, ngrams = (sum(count * means[kind][..., column] for kind, count in texts.items()) for column in (2, 3))
    # Texts too short for an n-gram score 0.
    return np.where(ngrams > 0, 1.0 - repeated / np.maximum(ngrams, 1e-300), 0.0)
