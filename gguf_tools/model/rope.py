"""Rotary position embedding (RoPE): base, rotated dimensions, pair order, scaling, and the frequencies that follow."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gguf_tools.model.features import Place, choice, option, size


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (position interpolation, Chen et al. 2023)."""

    factor: float = size()


def _betas(_: float, place: Place) -> str:
    return f"YaRN with beta_fast {place.owner.beta_fast:g} and beta_slow {place.owner.beta_slow:g}"


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolation by frequency between `beta_fast` and `beta_slow` rotations.

    `attention_factor` multiplies cosine and sine; None means 0.1 · ln(factor) + 1. `truncate` rounds the correction
    range outwards to whole dimensions, which ggml always does.
    """

    factor: float = size()
    original_context: int = size()
    beta_fast: float = option(_betas, 32.0)
    beta_slow: float = option(_betas, 1.0)
    attention_factor: float | None = option("a non-default YaRN attention factor")
    truncate: bool = option("YaRN without truncation of the correction range", True)

    @property
    def magnitude(self) -> float:
        """The factor on cosine and sine."""
        return default_magnitude(self.factor) if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, with linear interpolation between."""

    factor: float = size()
    low_freq_factor: float = size()
    high_freq_factor: float = size()
    original_context: int = size()


@dataclass(frozen=True)
class FactorScaling:
    """Each pair's frequency divided by its own factor (dims / 2 factors), as in the `rope_freqs` tensor of GGUF files."""

    factors: tuple[float, ...] = size()


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): each pair's frequency divided by its own factor, of which there are two sets.

    Sequences of up to `original_context` tokens have the `short` factors, longer ones the `long` factors, dims / 2 each, at all
    their positions. `attention_factor` multiplies cosine and sine.
    """

    short: tuple[float, ...] = size()
    long: tuple[float, ...] = size()
    original_context: int = size()
    attention_factor: float = option("a LongRoPE attention factor", 1.0)

    def factors(self, length: int) -> tuple[float, ...]:
        """The factors for a sequence of so many tokens."""
        return self.long if length > self.original_context else self.short


Scaling = LinearScaling | YarnScaling | Llama3Scaling | FactorScaling | LongRopeScaling


PAIRS = {"half": "rope in pairs half a head apart", "interleaved": "rope in interleaved pairs"}
SCALINGS = {
    "LinearScaling": "linear rope scaling",
    "YarnScaling": "YaRN rope scaling",
    "Llama3Scaling": "llama3 rope scaling",
    "FactorScaling": "rope with frequency factors",
    "LongRopeScaling": "LongRoPE scaling",
}


def _partial(dims: int, place: Place) -> str:
    return f"rope on {dims} of {place.parent.head_dim} dimensions"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first `dims` dimensions of each head.

    `pairs` says which dimensions are rotated together: "half" is (i, i + dims/2), NeoX; "interleaved" is (2i, 2i + 1), GPT-J.
    The pair (a, b) becomes (a cos - b sin, b cos + a sin), and (a cos + b sin, b cos - a sin) if it is rotated `backwards`.
    """

    theta: float = size()
    dims: int = option(_partial, MISSING, neutral=lambda dims, place: dims == place.parent.head_dim)
    pairs: Literal["half", "interleaved"] = choice(lambda pairs, _: PAIRS[pairs], "half")
    scaling: Scaling | None = option(lambda scaling, _: SCALINGS[type(scaling).__name__])
    backwards: bool = option("rope that rotates backwards", False)


def default_magnitude(factor: float) -> float:
    """YaRN's recommended attention factor, 0.1 · ln(factor) + 1, or 1 for factor ≤ 1 (Peng et al. 2023, section 3.4)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def longrope_magnitude(factor: float, original_context: int) -> float:
    """LongRoPE's recommended attention factor, √(1 + ln(factor) / ln(original_context)), or 1 for factor ≤ 1."""
    return math.sqrt(1 + math.log(factor) / math.log(original_context)) if factor > 1.0 else 1.0


def frequencies(rope: Rope, length: int = 0) -> tuple[NDArray[np.float64], float]:
    """Rotation angle per position of each pair, in radians, shape (dims / 2,), and the factor on cosine and sine.

    `length` is the number of tokens of the sequence, on which LongRoPE depends.
    """
    base = rope.theta ** -(np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims)
    match rope.scaling:
        case None:
            return base, 1.0
        case LinearScaling(factor):
            return base / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(base, scaling), 1.0
        case FactorScaling(factors):
            with np.errstate(divide="ignore"):  # a broken file may have factors of 0
                return base / np.asarray(factors, np.float64), 1.0
        case LongRopeScaling() as scaling:
            return base / np.asarray(scaling.factors(length), np.float64), scaling.attention_factor
        case YarnScaling() as scaling:
            return _yarn(base, rope, scaling), scaling.magnitude


def _llama3(base: NDArray[np.float64], scaling: Llama3Scaling) -> NDArray[np.float64]:
    turns = scaling.original_context * base / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return np.asarray((1 - smooth) * base / scaling.factor + smooth * base, np.float64)


def correction_range(rope: Rope, scaling: YarnScaling) -> tuple[float, float]:
    """First and last pair of YaRN's ramp between extrapolation and interpolation (transformers: `find_correction_range`).

    With unusual combinations of context and base the last may come before the first.
    """

    def dimension(rotations: float) -> float:
        turned = math.log(scaling.original_context / (2 * math.pi)) - math.log(rotations)
        return rope.dims * turned / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, rope.dims - 1)


def _yarn(base: NDArray[np.float64], rope: Rope, scaling: YarnScaling) -> NDArray[np.float64]:
    low, high = correction_range(rope, scaling)
    width = high - low or 0.001
    interpolated = np.clip((np.arange(rope.dims // 2) - low) / width, 0.0, 1.0)
    return np.asarray(base * (1 - interpolated) + base / scaling.factor * interpolated, np.float64)
