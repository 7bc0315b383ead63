"""The tensor types of ggml: names, numbers and block layouts.

Source: ggml 0.25.3 (llama-cpp-python 0.3.36), `enum ggml_type` and `ggml_type_name` for the names and numbers, the `block_*`
structures of ggml-common.h for the layouts. A test compares them with the loaded library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from quant.errors import InputError

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of ggml.h: the value of `general.quantization_version` in files with quantized tensors."""


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """One ggml type.

    `name` is llama.cpp's name (`q4_K`), `ggml_id` its number in a GGUF file. A row is stored as blocks of `block` weights in
    `block_bytes` bytes each. `scales` are the byte offsets of the F16 scales within a block, the only numbers in a block that
    can be infinite or NaN. `encodes` says whether `quant` can encode the type; all others can only be decoded or copied.
    `on_grid`: groups of weights are rounded together, to points of a grid that an importance matrix weighs; with
    `needs_importance` ggml encodes it with one only (`ggml_quantize_requires_imatrix`).
    """

    name: str
    ggml_id: int
    block: int
    block_bytes: int
    scales: tuple[int, ...] = ()
    encodes: bool = False
    on_grid: bool = False
    needs_importance: bool = False

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.block_bytes / self.block

    @property
    def plain(self) -> bool:
        """Whether each element is stored separately (`ggml_is_quantized` is false)."""
        return self.block == 1

    def __str__(self) -> str:
        return self.name


F32 = TensorType(name="f32", ggml_id=0, block=1, block_bytes=4, encodes=True)
F16 = TensorType(name="f16", ggml_id=1, block=1, block_bytes=2, encodes=True)
BF16 = TensorType(name="bf16", ggml_id=30, block=1, block_bytes=2, encodes=True)
Q4_0 = TensorType(name="q4_0", ggml_id=2, block=32, block_bytes=18, scales=(0,), encodes=True)
Q4_1 = TensorType(name="q4_1", ggml_id=3, block=32, block_bytes=20, scales=(0, 2), encodes=True)
Q5_0 = TensorType(name="q5_0", ggml_id=6, block=32, block_bytes=22, scales=(0,), encodes=True)
Q5_1 = TensorType(name="q5_1", ggml_id=7, block=32, block_bytes=24, scales=(0, 2), encodes=True)
Q8_0 = TensorType(name="q8_0", ggml_id=8, block=32, block_bytes=34, scales=(0,), encodes=True)
Q2_K = TensorType(name="q2_K", ggml_id=10, block=256, block_bytes=84, scales=(80, 82), encodes=True)
Q3_K = TensorType(name="q3_K", ggml_id=11, block=256, block_bytes=110, scales=(108,), encodes=True)
Q4_K = TensorType(name="q4_K", ggml_id=12, block=256, block_bytes=144, scales=(0, 2), encodes=True)
Q5_K = TensorType(name="q5_K", ggml_id=13, block=256, block_bytes=176, scales=(0, 2), encodes=True)
Q6_K = TensorType(name="q6_K", ggml_id=14, block=256, block_bytes=210, scales=(208,), encodes=True)
IQ4_NL = TensorType(name="iq4_nl", ggml_id=20, block=32, block_bytes=18, scales=(0,), encodes=True)
IQ4_XS = TensorType(name="iq4_xs", ggml_id=23, block=256, block_bytes=136, scales=(0,), encodes=True)

IQ3_S = TensorType(name="iq3_s", ggml_id=21, block=256, block_bytes=110, scales=(0,), encodes=True, on_grid=True)
IQ3_XXS = TensorType(name="iq3_xxs", ggml_id=18, block=256, block_bytes=98, scales=(0,), encodes=True, on_grid=True)
IQ2_S = TensorType(name="iq2_s", ggml_id=22, block=256, block_bytes=82, scales=(0,), encodes=True, on_grid=True)
IQ2_XS = TensorType(
    name="iq2_xs", ggml_id=17, block=256, block_bytes=74, scales=(0,), encodes=True, on_grid=True, needs_importance=True
)
IQ2_XXS = TensorType(
    name="iq2_xxs",
    ggml_id=16,
    block=256,
    block_bytes=66,
    scales=(0,),
    encodes=True,
    on_grid=True,
    needs_importance=True,
)
# Its scale is stored in the high bits of four words.
IQ1_M = TensorType(name="iq1_m", ggml_id=29, block=256, block_bytes=56, encodes=True, on_grid=True)
IQ1_S = TensorType(
    name="iq1_s", ggml_id=19, block=256, block_bytes=50, scales=(0,), encodes=True, on_grid=True, needs_importance=True
)
TQ1_0 = TensorType(name="tq1_0", ggml_id=34, block=256, block_bytes=54, scales=(52,), encodes=True)
TQ2_0 = TensorType(name="tq2_0", ggml_id=35, block=256, block_bytes=66, scales=(64,), encodes=True)
MXFP4 = TensorType(name="mxfp4", ggml_id=39, block=32, block_bytes=17, encodes=True)  # its scale is a power of two
NVFP4 = TensorType(name="nvfp4", ggml_id=40, block=64, block_bytes=36, encodes=True)  # four 8-bit scales per block
Q2_0 = TensorType(name="q2_0", ggml_id=42, block=64, block_bytes=18, scales=(0,), encodes=True)
Q1_0 = TensorType(name="q1_0", ggml_id=41, block=128, block_bytes=18, scales=(0,), encodes=True)

# Types that are read and copied but never encoded: tables of integers.
_READ_ONLY = (
    TensorType(name="i8", ggml_id=24, block=1, block_bytes=1),
    TensorType(name="i16", ggml_id=25, block=1, block_bytes=2),
    TensorType(name="i32", ggml_id=26, block=1, block_bytes=4),
    TensorType(name="i64", ggml_id=27, block=1, block_bytes=8),
    TensorType(name="f64", ggml_id=28, block=1, block_bytes=8),
)

TYPES: tuple[TensorType, ...] = (
    *(F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_0, Q5_1, Q4_K, Q4_0, Q4_1, Q3_K, Q2_K, IQ4_NL, IQ4_XS),
    *(IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S, TQ1_0, TQ2_0, MXFP4, NVFP4, Q2_0, Q1_0),
    *_READ_ONLY,
)

_BY_NAME = {known.name.lower(): known for known in TYPES}
_BY_ID = {known.ggml_id: known for known in TYPES}


def nearest(name: str, known: Iterable[str]) -> str:
    """The names in `known` most similar to `name`, best first, as text for an error message.

    A common prefix has the most weight (q4_x is probably a q4); all names are given if none is similar.
    """

    def likeness(other: str) -> float:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, other, strict=False)))
        return same + SequenceMatcher(None, low, other).ratio()

    low, names = name.lower(), sorted(known)
    close = [other for other in sorted(names, key=likeness, reverse=True) if likeness(other) > 0.5]
    return ", ".join(close[:4] or names)


def tensor_type(name: str) -> TensorType:
    """The type named `name`, ignoring case. Raises InputError with the nearest names."""
    found = _BY_NAME.get(name.lower())
    if found is None:
        raise InputError(f"tensor type {name} does not exist; similar types are {nearest(name, _BY_NAME)}")
    return found


def is_type(name: str) -> bool:
    """Whether ggml has a type of this name, in either case."""
    return name.lower() in _BY_NAME


def type_of_id(ggml_id: int) -> TensorType:
    """The type with this number in GGUF files. Raises InputError if ggml 0.25.3 does not have it."""
    found = _BY_ID.get(ggml_id)
    if found is None:
        raise InputError(f"tensor type number {ggml_id} is unknown to ggml 0.25.3; write the file with a type it knows")
    return found


def infinite_scales(raw: NDArray[np.uint8], dtype: TensorType) -> NDArray[np.bool_]:
    """Which blocks in `raw`, contiguous whole blocks, have an F16 scale that is NaN or infinite (`ggml_validate_row_data`)."""
    blocks = raw.reshape(-1, dtype.block_bytes)
    if dtype is IQ1_M:
        # The scale's four digits are the upper ones of four words; the exponent lies in the last two.
        return np.asarray(((blocks[:, 53] & 0xC0) == 0xC0) & ((blocks[:, 55] & 0x70) == 0x70))
    bad = np.zeros(len(blocks), np.bool_)
    for at in dtype.scales:
        bad |= (blocks[:, at + 1] & 0x7C) == 0x7C  # the exponent, in the upper byte of an F16
    return bad


def row_bytes(dtype: TensorType, n: int) -> int:
    """Bytes of a row of `n` weights (`ggml_row_size`). Raises InputError if `n` is not a multiple of the block size."""
    if n % dtype.block:
        raise InputError(
            f"a row of {n} weights is not a multiple of {dtype.block}, the block of {dtype.name}; use another type"
        )
    return n // dtype.block * dtype.block_bytes
