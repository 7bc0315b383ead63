"""Type `auto`: the smallest plain type that holds a checkpoint's weights exactly (quantized ones: `exact_types`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from quant.encode import narrowing_loss
from quant.narrowing import Narrowing
from quant.types import BF16, F16, TensorType

FLOAT_ROUNDING = 2.0**-24
"""Half a unit in the last place of float32: smaller relative changes are within the rounding of float arithmetic."""
PIECE = 1 << 20
"""Weights that are read and compared at a time."""


@dataclass(frozen=True)
class TypeDecision:
    """The type recipe that is used, and the reason.

    The tensors in `exact` are packed in these types without a change of any weight; `named` is then the recipe of the type that
    most of them have, and `recipe` that of the others.
    """

    recipe: str
    reason: str
    exact: Mapping[str, TensorType] = field(default_factory=dict)
    named: str = ""

    @property
    def name(self) -> str:
        """The name of the type in reports and in the file."""
        return self.named or self.recipe


def smallest_exact(
    wide: Sequence[Tensor], threads: int, progress: ByteProgress, *, allow_nonfinite: bool = False
) -> TypeDecision:
    """The smallest of f16, bf16 and f32 that holds every weight exactly, up to float rounding, and the reason.

    `wide` are the tensors to be stored in that type; `progress` receives the number of weights read since the last call.
    F16 has the range ±65504 and fixed steps of 2^-24 below 6e-5. It is used if no weight overflows and the relative RMS
    change of each tensor is below float32 rounding. F16 comes before BF16 because llama.cpp's CPU results are far more
    accurate with it.
    """
    dtypes: Counter[str] = Counter()
    for tensor in wide:
        dtypes[tensor.dtype] += tensor.size
    stored = ", ".join(dtype for dtype, _ in dtypes.most_common()) or "F32"
    moved, furthest, blocker = 0, 0.0, None
    for tensor, loss in zip(wide, _losses(wide, F16, threads, progress, allow_nonfinite), strict=True):
        relative = (loss.sum_sq_change / loss.sum_sq) ** 0.5 if loss.sum_sq else 0.0
        if loss.overflowed or relative > FLOAT_ROUNDING:
            name = ", ".join(tensor.sources[:1])
            what = (
                f"{loss.overflowed} weights beyond ±65504"
                if loss.overflowed
                else f"a relative change of {relative:.1e}"
            )
            blocker = f"f16 would give {name} {what}"
            break
        moved, furthest = moved + loss.changed, max(furthest, loss.max_abs_change)
    if blocker is None:
        small = f"; {moved:,} small weights change by at most {furthest:.0e}, less than float rounding" if moved else ""
        return TypeDecision("f16", f"f16 holds the {stored} weights{small}")
    if not any(loss.changed for loss in _losses(wide, BF16, threads, lambda _: None, allow_nonfinite)):
        return TypeDecision("bf16", f"{blocker}; bf16 holds the {stored} weights exactly")
    how = "up to float rounding" if "F64" in dtypes else "exactly"
    return TypeDecision("f32", f"{blocker}; f32 holds the {stored} weights {how}")


def _losses(
    tensors: Sequence[Tensor], dtype: TensorType, threads: int, progress: ByteProgress, allow_nonfinite: bool
) -> Iterator[Narrowing]:
    """How much storing each tensor as `dtype` would change its weights, measured on `threads` threads."""

    def measure(tensor: Tensor, start: int) -> Narrowing:
        stop = min(start + PIECE, tensor.size)
        name = ", ".join(tensor.sources[:1])
        return narrowing_loss(tensor.flat(start, stop), dtype, name, allow_nonfinite=allow_nonfinite)

    with ThreadPoolExecutor(threads) as pool:
        for tensor in tensors:
            total = Narrowing()
            for loss in pool.map(partial(measure, tensor), range(0, tensor.size, PIECE)):
                total += loss
                progress(loss.weights)
            yield total
