"""Small integers from the words that they are packed in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
WORD = 32


def dense_words(count: int, bits: int) -> int:
    """Words of 32 bits that hold `count` integers of `bits` bits without gaps."""
    return -(-count * bits // WORD)


def padded_words(count: int, bits: int) -> int:
    """Words of 32 bits if each holds as many whole integers as fit, with unused bits above them."""
    return -(-count // (WORD // bits))


def dense(data: NDArray[np.uint8], bits: int, count: int) -> Codes:
    """`count` integers of `bits` bits (1 to 8) from each row of bytes (n, bytes): element i begins at bit i · bits.

    Words of 32 bits in little-endian order hold the same stream of bits as their bytes.
    """
    rows = len(data)
    if bits == 8:
        return data[:, :count]
    if 8 % bits == 0:
        per = 8 // bits
        out = np.empty((rows, data.shape[1], per), np.uint8)
        for at in range(per):
            np.bitwise_and(data >> np.uint8(at * bits), np.uint8((1 << bits) - 1), out=out[:, :, at])
        return out.reshape(rows, -1)[:, :count]
    stream = np.unpackbits(data, axis=1, count=count * bits, bitorder="little").reshape(rows, count, bits)
    return np.packbits(stream, axis=2, bitorder="little").reshape(rows, count)


def padded(data: NDArray[np.uint8], bits: int, count: int) -> Codes:
    """The same of words that hold 32 // `bits` integers each, with unused bits above them."""
    words = np.ascontiguousarray(data).view("<u4")
    out = np.empty((*words.shape, WORD // bits), np.uint8)
    for at in range(WORD // bits):
        out[:, :, at] = words >> np.uint32(at * bits) & np.uint32((1 << bits) - 1)
    return out.reshape(len(data), -1)[:, :count]
