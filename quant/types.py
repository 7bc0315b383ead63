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


@dataclass(frozen=True)
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


F32 = TensorType("f32", 0, 1, 4, encodes=True)
F16 = TensorType("f16", 1, 1, 2, encodes=True)
BF16 = TensorType("bf16", 30, 1, 2, encodes=True)
Q4_0 = TensorType("q4_0", 2, 32, 18, (0,), encodes=True)
Q4_1 = TensorType("q4_1", 3, 32, 20, (0, 2), encodes=True)
Q5_0 = TensorType("q5_0", 6, 32, 22, (0,), encodes=True)
Q5_1 = TensorType("q5_1", 7, 32, 24, (0, 2), encodes=True)
Q8_0 = TensorType("q8_0", 8, 32, 34, (0,), encodes=True)
Q2_K = TensorType("q2_K", 10, 256, 84, (80, 82), encodes=True)
Q3_K = TensorType("q3_K", 11, 256, 110, (108,), encodes=True)
Q4_K = TensorType("q4_K", 12, 256, 144, (0, 2), encodes=True)
Q5_K = TensorType("q5_K", 13, 256, 176, (0, 2), encodes=True)
Q6_K = TensorType("q6_K", 14, 256, 210, (208,), encodes=True)
IQ4_NL = TensorType("iq4_nl", 20, 32, 18, (0,), encodes=True)
IQ4_XS = TensorType("iq4_xs", 23, 256, 136, (0,), encodes=True)

# Read, never written: weights of files that others quantized, and tables of integers that are copied as they are.
_READ_ONLY = (
    TensorType("iq2_xxs", 16, 256, 66, (0,)),
    TensorType("iq2_xs", 17, 256, 74, (0,)),
    TensorType("iq2_s", 22, 256, 82, (0,)),
    TensorType("iq3_xxs", 18, 256, 98, (0,)),
    TensorType("iq3_s", 21, 256, 110, (0,)),
    TensorType("iq1_s", 19, 256, 50, (0,)),
    TensorType("iq1_m", 29, 256, 56),  # its scale is spread over the high bits of four words
    TensorType("tq1_0", 34, 256, 54, (52,)),
    TensorType("tq2_0", 35, 256, 66, (64,)),
    TensorType("mxfp4", 39, 32, 17),  # a power of two a block
    TensorType("nvfp4", 40, 64, 36),  # four 8-bit scales a block
    TensorType("q1_0", 41, 128, 18, (0,)),
    TensorType("q2_0", 42, 64, 18, (0,)),
    TensorType("i8", 24, 1, 1),
    TensorType("i16", 25, 1, 2),
    TensorType("i32", 26, 1, 4),
    TensorType("i64", 27, 1, 8),
    TensorType("f64", 28, 1, 8),
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


def type_of_id(ggml_id: int) -> TensorType:
    """The type with this number in a GGUF file. Raises InputError if ggml 0.25.3 has none."""
    found = _BY_ID.get(ggml_id)
    if found is None:
        raise InputError(f"tensor type number {ggml_id} is unknown to ggml 0.25.3; write the file with a type it knows")
    return found


def row_bytes(kind: TensorType, n: int) -> int:
    """Bytes that a row of `n` weights takes (`ggml_row_size`). Raises InputError if `n` is not whole blocks."""
    if n % kind.block:
        raise InputError(
            f"a row of {n} weights is not a multiple of {kind.block}, the block of {kind.name}; use another type"
        )
    return n // kind.block * kind.block_bytes
