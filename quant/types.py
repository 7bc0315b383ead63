"""The tensor types of ggml: names, numbers and block layouts.

Facts of ggml 0.25.3 (llama-cpp-python 0.3.36): `enum ggml_type` and `ggml_type_name` for the names and numbers, the
`block_*` structures of ggml-common.h for the layouts. A test holds them against the loaded library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import takewhile

from quant.errors import InputError

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of ggml.h, which files with quantized tensors state under `general.quantization_version`."""


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """One ggml type.

    `name` is what llama.cpp prints (`q4_K`), `ggml_id` its number in a GGUF file. A row is stored as blocks of
    `block` weights in `block_bytes` bytes each. `scales` are the byte offsets, within a block, of its F16 scales:
    the only place where a stored block can hold an infinity or a NaN. `encodes` says whether `quant` writes the
    type; all others are only read.
    """

    name: str
    ggml_id: int
    block: int
    block_bytes: int
    scales: tuple[int, ...] = ()
    encodes: bool = False

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.block_bytes / self.block

    @property
    def plain(self) -> bool:
        """Whether each element is stored by itself (`ggml_is_quantized` is false)."""
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

# Read, never written: weights of files that others quantized, and tables of integers that are copied as they are.
_READ_ONLY = (
    TensorType(name="iq2_xxs", ggml_id=16, block=256, block_bytes=66, scales=(0,)),
    TensorType(name="iq2_xs", ggml_id=17, block=256, block_bytes=74, scales=(0,)),
    TensorType(name="iq2_s", ggml_id=22, block=256, block_bytes=82, scales=(0,)),
    TensorType(name="iq3_xxs", ggml_id=18, block=256, block_bytes=98, scales=(0,)),
    TensorType(name="iq3_s", ggml_id=21, block=256, block_bytes=110, scales=(0,)),
    TensorType(name="iq1_s", ggml_id=19, block=256, block_bytes=50, scales=(0,)),
    TensorType(
        name="iq1_m", ggml_id=29, block=256, block_bytes=56
    ),  # its scale is spread over the high bits of four words
    TensorType(name="tq1_0", ggml_id=34, block=256, block_bytes=54, scales=(52,)),
    TensorType(name="tq2_0", ggml_id=35, block=256, block_bytes=66, scales=(64,)),
    TensorType(name="mxfp4", ggml_id=39, block=32, block_bytes=17),  # a power of two a block
    TensorType(name="nvfp4", ggml_id=40, block=64, block_bytes=36),  # four 8-bit scales a block
    TensorType(name="q1_0", ggml_id=41, block=128, block_bytes=18, scales=(0,)),
    TensorType(name="q2_0", ggml_id=42, block=64, block_bytes=18, scales=(0,)),
    TensorType(name="i8", ggml_id=24, block=1, block_bytes=1),
    TensorType(name="i16", ggml_id=25, block=1, block_bytes=2),
    TensorType(name="i32", ggml_id=26, block=1, block_bytes=4),
    TensorType(name="i64", ggml_id=27, block=1, block_bytes=8),
    TensorType(name="f64", ggml_id=28, block=1, block_bytes=8),
)

TYPES: tuple[TensorType, ...] = (
    *(F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_0, Q5_1, Q4_K, Q4_0, Q4_1, Q3_K, Q2_K, IQ4_NL, IQ4_XS),
    *_READ_ONLY,
)

_BY_NAME = {known.name.lower(): known for known in TYPES}
_BY_ID = {known.ggml_id: known for known in TYPES}


def nearest(name: str, known: Iterable[str]) -> str:
    """The names among `known` that are most like `name`, best first, as text for an error message.

    A common beginning counts most (q4_x is meant to be a q4); all names are given where none is like it.
    """

    def likeness(other: str) -> float:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, other, strict=False)))
        return same + SequenceMatcher(None, low, other).ratio()

    low, names = name.lower(), sorted(known)
    close = [other for other in sorted(names, key=likeness, reverse=True) if likeness(other) > 0.5]
    return ", ".join(close[:4] or names)


def tensor_type(name: str) -> TensorType:
    """The type called `name`, in either case. Raises InputError with the nearest names."""
    found = _BY_NAME.get(name.lower())
    if found is None:
        raise InputError(f"tensor type {name} does not exist; nearest: {nearest(name, _BY_NAME)}")
    return found


def is_type(name: str) -> bool:
    """Whether ggml has a type of this name, in either case."""
    return name.lower() in _BY_NAME


def type_of_id(ggml_id: int) -> TensorType:
    """The type with this number in a GGUF file. Raises InputError if ggml 0.25.3 has none."""
    found = _BY_ID.get(ggml_id)
    if found is None:
        raise InputError(f"tensor type number {ggml_id} is unknown to ggml 0.25.3; write the file with a type it knows")
    return found


def row_bytes(dtype: TensorType, n: int) -> int:
    """Bytes that a row of `n` weights takes (`ggml_row_size`). Raises InputError if `n` is not whole blocks."""
    if n % dtype.block:
        raise InputError(
            f"a row of {n} weights is not a multiple of {dtype.block}, the block of {dtype.name}; use another type"
        )
    return n // dtype.block * dtype.block_bytes
