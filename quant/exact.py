"""Packs weights into a quantized type without any change, where they are multiples of a scale that the type can hold.

ggml's encoders choose the scale of a block that fits its weights best, and so change weights that another scale would give
exactly: those of a model that was quantized before, or trained for it. Here the scale is found by number theory: it divides the
greatest common divisor of a block's weights. ggml decodes what is packed, so a packing is known to be exact, or there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quant import ggml
from quant.types import MXFP4, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, TensorType, row_bytes

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

TILE = 1 << 15
"""Weights that are packed at a time, whose arrays fit into a core's cache."""
FRACTION = 20
"""Bits to which the largest weight of a block is scaled: a scale has 11, a code at most 8, so that all weights are integers."""
FURTHEST = 40
"""Largest exponent, up or down, of the largest weight of a block; a scale in F16 times a code stays within."""


@dataclass(frozen=True)
class Range:
    """The codes of a type, `low` to `high`. With `offset` a block has a least weight too: weight = scale · code + least."""

    low: int
    high: int
    offset: bool = False

    @property
    def most(self) -> int:
        """The largest magnitude of a code."""
        return max(-self.low, self.high)


RANGES: Mapping[TensorType, Range] = {
    Q2_0: Range(-1, 2),
    Q4_0: Range(-8, 7),
    Q4_1: Range(0, 15, offset=True),
    Q5_0: Range(-16, 15),
    Q5_1: Range(0, 31, offset=True),
    Q8_0: Range(-128, 127),
}
EXACT: tuple[TensorType, ...] = tuple(sorted((*RANGES, MXFP4), key=lambda dtype: dtype.bits))
"""The types that weights can be packed into without a change, the smallest first."""

MULTIPLES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
"""The magnitudes of MXFP4's codes 0 to 7 (OCP Microscaling Formats 1.0, section 5.3.3)."""
NONE = 255
CODES = np.full(14, NONE, np.uint8)
CODES[(2 * MULTIPLES).astype(np.int64)] = np.arange(8)
"""The code of a magnitude in halves, `NONE` for those that have none."""


def pack_exactly(rows: Floats, dtype: TensorType) -> Bytes | None:
    """Rows (n, k) of float32 as (n, row bytes) of `dtype`, or None if a block has weights that it cannot hold exactly.

    `k` is a multiple of the type's block size, and `dtype` one of `EXACT`. Weights are compared as numbers: -0 is 0. Thread-safe.
    """
    n, k = rows.shape
    raw = np.empty((n, row_bytes(dtype, k)), np.uint8)
    step = max(1, TILE // max(1, k))
    for start in range(0, n if k else 0, step):
        tile = np.ascontiguousarray(rows[start : start + step], np.float32).reshape(-1, dtype.block)
        packed = _mxfp4(tile) if dtype is MXFP4 else _integers(tile, dtype)
        if packed is None:
            return None
        decoded = np.empty_like(tile)
        ggml.to_float(dtype, packed, decoded)
        if not np.array_equal(decoded, tile):
            return None
        raw[start : start + step] = packed.reshape(-1, raw.shape[1])
    return raw


def _integers(blocks: Floats, dtype: TensorType) -> Bytes | None:
    """Blocks (n, block) in a type of integers, or None."""
    codes = RANGES[dtype]
    found = _with_offset(blocks, codes) if codes.offset else _multiples(blocks, codes)
    if found is None:
        return None
    scale, least, q = found
    stored = (q - np.float32(codes.low)).astype(np.uint8)
    parts = [_halves(scale), *([_halves(least)] if codes.offset else []), *LAYOUTS[dtype](stored)]
    return np.asarray(np.concatenate(parts, axis=1), np.uint8)


def _halves(numbers: Doubles) -> Bytes:
    return np.asarray(numbers.astype("<f2").view(np.uint8).reshape(-1, 2))


def _joined(*parts: Bytes) -> Bytes:
    """Bytes with the codes of the parts one above the other; together they have 8 bits."""
    out: Bytes = parts[0].copy()
    width = np.uint8(8 // len(parts))
    for at, part in enumerate(parts[1:], 1):
        np.bitwise_or(out, np.left_shift(part, np.uint8(at * width)), out=out)
    return out


def _nibbles(q: Bytes) -> Bytes:
    """16 bytes of 32 codes: the lower bits of byte j have code j, the upper ones code j + 16."""
    low = np.bitwise_and(q, np.uint8(15))
    return _joined(low[:, :16], low[:, 16:])


def _five(q: Bytes) -> list[Bytes]:
    return [np.packbits(np.right_shift(q, np.uint8(4)), axis=1, bitorder="little"), _nibbles(q)]


LAYOUTS: Mapping[TensorType, Callable[[Bytes], list[Bytes]]] = {
    Q2_0: lambda q: [_joined(*(q[:, at::4] for at in range(4)))],
    Q4_0: lambda q: [_nibbles(q)],
    Q4_1: lambda q: [_nibbles(q)],
    Q5_0: _five,
    Q5_1: _five,
    Q8_0: lambda q: [np.bitwise_xor(q, np.uint8(128))],
}
"""What follows the scales in a block (`block_q4_0` … of ggml-common.h); codes are counted from the lowest one."""


def _unit(x: Floats) -> tuple[Doubles, Floats] | None:
    """(units, multiples): each row of `x` is its unit times integers without a common divisor; None if a row has no unit.

    A row of zeros has the unit 0. Integers are float32, at most 2^`FRACTION`.
    """
    most = np.abs(x).max(axis=1)
    exponent = np.frexp(most)[1]
    if not np.isfinite(most).all() or np.abs(exponent).max(initial=0) > FURTHEST:
        return None
    whole = x * np.ldexp(np.float32(1), FRACTION - exponent)[:, None]
    integers = np.rint(whole)
    if not np.array_equal(integers, whole):
        return None
    divisor = np.gcd.reduce(integers.astype(np.int32), axis=1)
    unit = np.ldexp(divisor.astype(np.float64), exponent - FRACTION)
    # The quotient is an integer, so its division is exact.
    return unit, integers / np.maximum(divisor, 1).astype(np.float32)[:, None]


def _is_half(numbers: Doubles) -> Mask:
    """Which numbers are F16 numbers."""
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16)
    return np.asarray(np.isfinite(halves) & (halves == numbers))


def _divided(unit: Doubles, factor: int) -> tuple[Doubles, Mask]:
    """(unit / factor, where that is exact and an F16 number)."""
    scale = unit / factor
    return scale, _is_half(scale) & (scale * factor == unit)


def _multiples(blocks: Floats, codes: Range) -> tuple[Doubles, Doubles, Floats] | None:
    """(scales, zeros, codes) with weight = scale · code, or None.

    The codes are the multiples of the unit, times a factor where the unit itself is not an F16 number.
    """
    found = _unit(blocks)
    if found is None:
        return None
    unit, q = found
    high, low = q.max(axis=1), q.min(axis=1)
    scales, times, left = np.zeros(len(q)), np.zeros(len(q), np.float32), np.ones(len(q), np.bool_)
    for factor in range(1, codes.most + 1):
        scale, half = _divided(unit, factor)
        for sign, top, bottom in ((1, high, low), (-1, -low, -high)):
            fits = left & half & (top * factor <= codes.high) & (bottom * factor >= codes.low)
            scales[fits], times[fits] = sign * scale[fits], sign * factor
            left &= ~fits
        if not left.any():
            return scales, np.zeros(len(q)), q * times[:, None]
        if np.maximum(high, -low)[left].max() * (factor + 1) > codes.most:
            return None
    return None


def _with_offset(blocks: Floats, codes: Range) -> tuple[Doubles, Doubles, Floats] | None:
    """(scales, least weights, codes) with weight = scale · code + least, or None. With a negative scale, "least" is the largest.

    The end of the range of weights is a multiple of the scale away from `least`, which must be an F16 number.
    """
    wide = blocks.astype(np.float64)
    lowest, highest = wide.min(axis=1), wide.max(axis=1)
    found = _unit((wide - lowest[:, None]).astype(np.float32))
    if found is None:
        return None
    unit, q = found
    top = q.max(axis=1)
    scales, least, left = np.zeros(len(q)), np.zeros(len(q)), np.ones(len(q), np.bool_)
    out = np.zeros_like(q)
    for factor in range(1, codes.high + 1):
        scale, half = _divided(unit, factor)
        for shift in range(codes.high + 1):
            room = left & half & (top * factor + shift <= codes.high)
            if not room.any():
                break
            for sign, end in ((1, lowest), (-1, highest)):
                offset = end - sign * scale * shift
                fits = room & left & _is_half(offset)
                scales[fits], least[fits] = sign * scale[fits], offset[fits]
                away = q[fits] if sign == 1 else top[fits, None] - q[fits]
                out[fits] = away * factor + shift
                left &= ~fits
        if not left.any():
            return scales, least, out
        if top[left].max() * (factor + 1) > codes.high:
            return None
    return None


def _mxfp4(blocks: Floats) -> Bytes | None:
    """Blocks of 32 weights as an exponent and 4-bit floats, or None: the largest weight is one of the multiples of the scale."""
    most = np.abs(blocks).max(axis=1)
    if not np.isfinite(most).all():
        return None
    raw = np.zeros((len(blocks), MXFP4.block_bytes), np.uint8)
    left = np.flatnonzero(most)
    for multiple in MULTIPLES[:0:-1]:
        fraction, exponent = np.frexp(most[left].astype(np.float64) / multiple)
        # A power of two has the fraction 1/2; the byte e stands for 2^(e - 127).
        byte = exponent - 1 + 127
        maybe = (fraction == 0.5) & (byte >= 0) & (byte < 255)
        # In halves of the scale, all magnitudes are integers.
        x = blocks[left[maybe]] * np.ldexp(1.0, 2 - exponent[maybe])[:, None]
        halves = np.minimum(np.abs(x), len(CODES) - 1).astype(np.int64)
        codes = CODES[halves]
        fits = ((halves == np.abs(x)) & (codes != NONE)).all(axis=1)
        at = left[maybe][fits]
        raw[at, 0] = byte[maybe][fits]
        raw[at, 1:] = _nibbles(codes[fits] | np.where(x[fits] < 0, np.uint8(8), np.uint8(0)))
        left = np.setdiff1d(left, at, assume_unique=True)
        if not len(left):
            return raw
    return None if len(left) else raw
