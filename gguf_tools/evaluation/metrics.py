"""Metrics of the difference between a model's logits and a reference's, in numpy, accumulated in float64.

Definitions follow llama.cpp where it has them: NMSE is `nmse` of `tests/test-backend-ops.cpp`, and the KL divergence
is that of `llama-perplexity --kl-divergence`, in nats, with the reference as the first distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_tools.errors import InputError, LlamaError
from gguf_tools.tensors.error import ratio

Float = npt.NDArray[np.float64]
Logits = npt.NDArray[Any]
Targets = npt.NDArray[np.integer[Any]]

NO_TARGET = -1
"""Marks a position in `targets` whose next token is not given, so that it does not count for the perplexity."""

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class FidelityMetrics:
    """Metrics over all positions of all prompts; the names are those of `tinyq eval --json`.

    `nmse`: Σ|model − reference|² / Σ|reference|², over all positions and the whole vocabulary.
    `max_abs_diff`: the largest |model − reference| of any logit.
    `kl_mean`, `kl_p99`, `kl_max`: KL(reference ‖ model) per position, in nats.
    `top1_agreement`: share of positions where both give the highest logit to the same token (lowest id on ties).
    `ppl_reference`, `ppl_model`: exp of the mean negative log-likelihood of the given next tokens; None without any.
    `n_prompts`, `n_tokens`: sequences and positions compared.
    `noise`: 95th percentile over positions of the RMS over the vocabulary of model − reference, both centred (a shift of all
    logits does not change the distribution). It includes positions with other experts selected, but not a fault at few positions.
    `spread`: median over positions of the standard deviation of the reference's logits over the vocabulary.
    """

    nmse: float
    max_abs_diff: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    ppl_reference: float | None
    ppl_model: float | None
    n_prompts: int
    n_tokens: int
    noise: float
    spread: float


def log_softmax(logits: Logits) -> Float:
    """Log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True).astype(np.float64)
    result: Float = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def next_token_nll(logits: Logits, tokens: Targets, name: str = "the sequence") -> Float:
    """Negative log-likelihoods in nats of tokens 1… of a sequence, given the logits before them: (T, V), (T,) → (T − 1,).

    Raises LlamaError if a logit is not finite; `name` is the name of the sequence in the message.
    """
    found = [np.zeros(0)]
    rows = _rows(logits.shape[1])
    for start in range(0, len(tokens) - 1, rows):
        part = logits[start : min(start + rows, len(tokens) - 1)].astype(np.float64)
        _check_finite(part, f"{name}: the model's", start, LlamaError)
        following = tokens[start + 1 : start + 1 + len(part)]
        found.append(-log_softmax(part)[np.arange(len(part)), following])
    result: Float = np.concatenate(found)
    return result


def kl_divergence(reference: Logits, model: Logits) -> Float:
    """KL(reference ‖ model) in nats for each row of two (T, V) arrays of logits; never below 0."""
    return kl_from(log_softmax(reference), model)


def kl_from(reference: Float, model: Logits) -> Float:
    """`kl_divergence` from a reference whose log-probabilities (T, V) are known, as `log_softmax` returns them."""
    return _kl(reference, log_softmax(model))


def _kl(reference: Float, model: Float) -> Float:
    result: Float = (np.exp(reference) * (reference - model)).sum(axis=-1)
    return np.maximum(result, 0.0, out=result)  # rounding may leave −1e-17 where the two agree


class FidelityAccumulator:
    """Accumulates metrics over pairs of logits, one prompt at a time, keeping a few numbers per position."""

    def __init__(self) -> None:
        """Start with no prompts: sums over all positions, and lists of one array per prompt."""
        self._difference = 0.0
        self._energy = 0.0
        self._max = 0.0
        self._agree = 0
        self._n_prompts = 0
        self._n_targets = 0
        self._nll_reference = 0.0
        self._nll_model = 0.0
        self._kl: list[Float] = []
        self._noise: list[Float] = []
        self._spread: list[Float] = []

    def add(
        self,
        reference: Logits,
        model: Logits,
        targets: Targets | None = None,
        name: str | None = None,
        first: int = 0,
    ) -> None:
        """Add one prompt's logits, both (T, V), and the token that follows each position, (T,) or None.

        `targets` may contain NO_TARGET. `name` is the name of the prompt in errors, by default its number. A long prompt may be
        added in blocks: `first` is the position of the block's first row, 0 for a new prompt. Raises InputError if shapes
        differ or a logit of the reference is not finite, LlamaError if one of the model is not.
        """
        self._n_prompts += first == 0
        name = f"prompt {self._n_prompts - 1}" if name is None else name
        if reference.shape != model.shape or reference.ndim != 2:
            raise InputError(
                f"{name}: the reference's logits have shape {reference.shape}, the model's {model.shape};"
                " expected the same shape (tokens, vocabulary), so this is not the model's reference"
            )
        for start, one, other in _blocks(reference, model):
            _check_finite(other, f"{name}: the model's", first + start, LlamaError)
            _check_finite(one, f"{name}: the reference's", first + start, InputError)
            self._add_block(one, other)
            one, other = log_softmax(one), log_softmax(other)
            self._kl.append(_kl(one, other))
            if targets is not None:
                part = targets[start : start + len(one)]
                rows = np.flatnonzero(part != NO_TARGET)
                self._n_targets += len(rows)
                self._nll_reference -= float(one[rows, part[rows]].sum())
                self._nll_model -= float(other[rows, part[rows]].sum())

    def _add_block(self, reference: Float, model: Float) -> None:
        difference = model - reference
        self._difference += float(np.square(difference).sum())
        self._energy += float(np.square(reference).sum())
        self._max = max(self._max, float(np.abs(difference).max(initial=0.0)))
        self._agree += int((reference.argmax(axis=-1) == model.argmax(axis=-1)).sum())
        self._noise.append(difference.std(axis=-1))
        self._spread.append(reference.std(axis=-1))

    def result(self) -> FidelityMetrics:
        """The metrics over everything added. Raises InputError if nothing was added."""
        kl = np.concatenate(self._kl) if self._kl else np.zeros(0)
        if not kl.size:
            raise InputError("no position was compared; give at least one prompt that fits the context")
        return FidelityMetrics(
            nmse=ratio(self._difference, self._energy),
            max_abs_diff=self._max,
            kl_mean=float(kl.mean()),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            top1_agreement=self._agree / kl.size,
            ppl_reference=self._perplexity(self._nll_reference),
            ppl_model=self._perplexity(self._nll_model),
            n_prompts=self._n_prompts,
            n_tokens=int(kl.size),
            noise=float(np.quantile(np.concatenate(self._noise), 0.95)),
            spread=float(np.median(np.concatenate(self._spread))),
        )

    def _perplexity(self, nll: float) -> float | None:
        if not self._n_targets:
            return None
        mean = nll / self._n_targets
        return math.exp(mean) if mean < 700 else math.inf  # exp overflows at 709


def _blocks(reference: Logits, model: Logits) -> Iterator[tuple[int, Float, Float]]:
    """(first row, reference, model) in float64, in blocks of rows of at most `_BLOCK_BYTES`."""
    rows = _rows(reference.shape[1])
    for start in range(0, len(reference), rows):
        part = slice(start, start + rows)
        yield start, reference[part].astype(np.float64), model[part].astype(np.float64)


def _rows(n_vocab: int) -> int:
    return max(1, _BLOCK_BYTES // (8 * max(n_vocab, 1)))


def _check_finite(logits: Float, whose: str, start: int, kind: type[InputError] | type[LlamaError]) -> None:
    bad = ~np.isfinite(logits)
    if bad.any():
        row, token = np.argwhere(bad)[0]
        raise kind(
            f"{whose} logit of token {token} at position {start + row} is {logits[row, token]}; expected a finite number"
        )
