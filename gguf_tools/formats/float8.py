"""Decoding tables for 8-bit floats.

Source: Micikevicius et al. 2022, "FP8 formats for deep learning" (E4M3 without infinities; E5M2 is the upper byte of a half
float). F8_E4M3 and F8_E5M2 are safetensors' dtype names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float32]


def _e4m3() -> Table:
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    values[bits & 127 == 127] = np.nan
    return np.where(bits >> 7 == 1, -values, values).astype(np.float32)


def _e5m2() -> Table:
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


FLOAT8: dict[str, Table] = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}
"""safetensors' dtype name → the value of each of the 256 bytes."""
