"""bitsandbytes: 4-bit codes of a table (NF4, FP4) with a maximum for each block of weights, and integers of 8 bits (LLM.int8()).

A 4-bit `weight` holds the codes of all weights in row-major order, the first of a pair in the upper bits, as bytes or as other
numbers made of these bytes. `weight.absmax` has the largest absolute value of each block, in double quantization as bytes with a
table, maxima and an offset of their own. `weight.quant_state.bitsandbytes__nf4` is JSON: sizes, and the type that weights are
rounded to. An 8-bit weight is q · SCB / 127 with one `SCB` a row.
Source: `QuantState` and the default backend of bitsandbytes 0.50.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gguf_tools.errors import CheckpointError, UnsupportedError
from gguf_tools.formats.safetensors import WIDTHS
from gguf_tools.formats.text_file import load_json
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.restore.unpack.base import Integers, Rows
from gguf_tools.sources.restore.unpack.found import Found
from gguf_tools.sources.restore.unpack.stated import ORIGINAL, Stated, beside, misfit
from gguf_tools.tensors.base import Tensor
from gguf_tools.tensors.views import View
from quant.encode import FloatArray, RawArray, narrow, widen
from quant.types import BF16, F16, F32, TensorType

STATE = re.compile(r"(.*)\.quant_state\.bitsandbytes__(nf4|fp4)")
SCALE = ".SCB"
KEYS = frozenset({
    "quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_threshold",
    "llm_int8_skip_modules", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
})  # fmt: skip
STATE_KEYS = frozenset({
    "quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset",
})  # fmt: skip
DTYPES: Mapping[str, TensorType] = {"float32": F32, "float16": F16, "bfloat16": BF16}
MOST_STATE = 1 << 16
"""Most bytes of the JSON of one weight."""
INVERSE = np.float32(7.874015718698502e-3)
"""1 / 127 as the library has it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Maxima:
    """The largest absolute value of each block of weights; with a `table` they are bytes in blocks of `size`."""

    absmax: Tensor
    table: FloatArray | None = None
    nested: Tensor | None = None
    size: int = 0
    offset: float = 0.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that they are read from."""
        return (self.absmax, self.nested) if self.nested is not None else (self.absmax,)

    def read(self, first: int, last: int) -> FloatArray:
        """Those of blocks `first` to `last`, float32."""
        if self.table is None or self.nested is None:
            return self.absmax.flat(first, last)
        start, stop = first // self.size, -(-last // self.size)
        scales = np.repeat(self.nested.flat(start, stop), self.size)[first - start * self.size :][: last - first]
        with np.errstate(all="ignore"):
            found: FloatArray = self.table[self.absmax.stored_bytes(first, last)] * scales + np.float32(self.offset)
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class FourBit(View):
    """Weights of 4 bits: table[code] times the maximum of a block of `block` weights, in float32, rounded to `kept`."""

    shape: tuple[int, ...]
    codes: Tensor
    maxima: Maxima
    table: FloatArray
    block: int
    kept: TensorType

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.kept.name.upper()

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.codes, *self.maxima.tensors)

    @property
    def stored(self) -> TensorType:
        return self.kept

    def _products(self, start: int, stop: int) -> FloatArray:
        """Weights `start` to `stop` before rounding."""
        width = WIDTHS[self.codes.dtype]
        first, last = start // 2, -(-stop // 2)
        begin = first // width
        data = self.codes.stored_bytes(begin, -(-last // width))[first - begin * width :][: last - first]
        codes = np.stack((data >> np.uint8(4), data & np.uint8(15)), axis=1).reshape(-1)[start - 2 * first :][
            : stop - start
        ]
        low, high = start // self.block, -(-stop // self.block)
        scales = np.repeat(self.maxima.read(low, high), self.block)[start - low * self.block :][: stop - start]
        with np.errstate(all="ignore"):  # of maxima that are not finite, which the encoder names
            found: FloatArray = self.table[codes] * scales
        return found

    def flat(self, start: int, stop: int) -> FloatArray:
        if stop <= start:
            return np.empty(0, np.float32)
        values = self._products(start, stop)
        return values if self.kept is F32 else widen(narrow(values, self.kept), self.kept)

    def raw(self, start: int, stop: int) -> RawArray:
        if self.kept is F32 or stop <= start:
            return self.flat(start, stop)
        return narrow(self._products(start, stop), self.kept)


@dataclass(frozen=True, eq=False, kw_only=True)
class EightBit(Rows):
    """q · SCB · (1 / 127) with one SCB a row; each product is rounded to float32, as the library does."""

    codes: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.codes.shape

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.codes, self.scale)

    def rows(self, first: int, last: int) -> FloatArray:
        found = Integers(self.codes).rows(first, last).astype(np.float32)
        with np.errstate(all="ignore"):
            found *= self.scale.flat(first, last)[:, None]
            found *= INVERSE
        return found


def find(checkpoint: Checkpoint, said: Stated) -> list[Found]:
    """The weights that bitsandbytes packed. Errors as `unpack`."""
    states = [match for match in map(STATE.fullmatch, checkpoint.tensors) if match]
    rows = [name.removesuffix(SCALE) for name in checkpoint.tensors if name.endswith(SCALE)]
    if states or rows:
        said.require_known("bitsandbytes", KEYS)
    return [
        *(_four_bit(checkpoint, match[1], match[2], match[0]) for match in states),
        *(_eight_bit(checkpoint, s) for s in rows),
    ]


def _four_bit(checkpoint: Checkpoint, name: str, kind: str, state_name: str) -> Found:
    """The weight `name` of codes of `kind` (nf4, fp4), whose JSON is in the tensor `state_name`."""
    state = _state(checkpoint, state_name)
    shape, block, kept = tuple(state["shape"]), state["blocksize"], DTYPES[str(state["dtype"])]
    size = prod(shape)
    codes = checkpoint.tensors.get(name)
    if codes is None:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is missing beside {state_name}; download the checkpoint again"
        )
    if codes.size * WIDTHS.get(codes.dtype, 0) != -(-size // 2):
        raise misfit(checkpoint, name, codes, f"{-(-size // 2)} bytes for {size} weights of 4 bits")
    table = beside(checkpoint, name, "quant_map", name)
    absmax = beside(checkpoint, name, "absmax", name)
    if table.size != 16 or table.dtype != "F32":
        raise misfit(checkpoint, f"{name}.quant_map", table, "F32 of 16 values")
    count = -(-size // block)
    if absmax.size != count or absmax.dtype not in ("F32", "U8"):
        raise misfit(checkpoint, f"{name}.absmax", absmax, f"F32 or U8 for {count} blocks of {block} weights")
    used = [name, state_name, f"{name}.quant_map", f"{name}.absmax"]
    maxima = Maxima(absmax=absmax)
    if absmax.dtype == "U8":
        maxima = _nested(checkpoint, name, state, absmax)
        used += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    tensor = FourBit(shape=shape, codes=codes, maxima=maxima, table=table.flat(0, 16), block=block, kept=kept)
    double = ", double quantization" if maxima.nested is not None else ""
    return Found(name, tensor, tuple(used), f"{kind.upper()}, blocks of {block}{double}, as {kept}")


def _nested(checkpoint: Checkpoint, name: str, state: Mapping[str, Any], absmax: Tensor) -> Maxima:
    """The maxima of double quantization."""
    nested, table = (beside(checkpoint, name, last, name) for last in ("nested_absmax", "nested_quant_map"))
    size, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(size) is not int or size < 1 or not isinstance(offset, float) or state.get("nested_dtype") != "float32":
        raise CheckpointError(
            f"{checkpoint.path}: the quant_state of {name} has nested_blocksize {size!r}, nested_offset {offset!r}, nested_dtype "
            f"{state.get('nested_dtype')!r}; expected two numbers and float32; download the checkpoint again"
        )
    if table.size != 256 or table.dtype != "F32":
        raise misfit(checkpoint, f"{name}.nested_quant_map", table, "F32 of 256 values")
    if nested.size != -(-absmax.size // size) or nested.dtype != "F32":
        raise misfit(
            checkpoint, f"{name}.nested_absmax", nested, f"F32 for {-(-absmax.size // size)} blocks of {size} maxima"
        )
    return Maxima(absmax=absmax, table=table.flat(0, 256), nested=nested, size=size, offset=float(offset))


def _state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON in a tensor of bytes. Raises CheckpointError if it is broken, UnsupportedError for a key that is not known."""
    tensor = checkpoint.tensors[name]
    if tensor.dtype != "U8" or tensor.size > MOST_STATE:
        raise misfit(checkpoint, name, tensor, f"U8 of at most {MOST_STATE} bytes")
    try:
        state = load_json(bytes(tensor.stored_bytes(0, tensor.size)))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} is not JSON ({error}); download the checkpoint again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{checkpoint.path}: tensor {name} is not a JSON object; download the checkpoint again")
    unknown = next((key for key in state if key not in STATE_KEYS), None)
    if unknown is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {name} has the key {unknown}, whose meaning is not known; {ORIGINAL}"
        )
    shape, block = state.get("shape"), state.get("blocksize")
    sizes = shape if isinstance(shape, list) and 0 < len(shape) <= 4 else [0]
    whole = all(type(n) is int and 0 < n < 1 << 31 for n in (*sizes, block)) and prod(sizes) < 1 << 48
    if not whole or str(state.get("dtype")) not in DTYPES:
        raise CheckpointError(
            f"{checkpoint.path}: tensor {name} has shape {shape!r}, blocksize {block!r}, dtype {state.get('dtype')!r}; expected "
            "the sizes of a weight, and float32, float16 or bfloat16; download the checkpoint again"
        )
    return state


def _eight_bit(checkpoint: Checkpoint, stem: str) -> Found:
    """The weight of one layer of LLM.int8()."""
    name, scale = f"{stem}.weight", checkpoint.tensors[stem + SCALE]
    codes = beside(checkpoint, stem, "weight", stem + SCALE)
    if codes.dtype != "I8" or len(codes.shape) != 2:
        raise misfit(checkpoint, name, codes, "I8 of two axes")
    if scale.size != codes.shape[0] or scale.dtype != "F32":
        raise misfit(checkpoint, stem + SCALE, scale, f"F32 of {codes.shape[0]} rows")
    used = [name, stem + SCALE]
    order = checkpoint.tensors.get(f"{stem}.weight_format")
    if order is not None:
        if order.size != 1 or order.numbers(0, 1)[0] != 0:
            raise UnsupportedError(
                f"{checkpoint.path}: tensor {stem}.weight_format says that the weight is not in rows; save it with bitsandbytes "
                "0.45 or later, or convert the original checkpoint"
            )
        used.append(f"{stem}.weight_format")
    return Found(name, EightBit(codes=codes, scale=scale), tuple(used), "8 bits, one scale per row")
