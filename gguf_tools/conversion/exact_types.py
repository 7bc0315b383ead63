"""Quantized types that hold weights exactly: those of a packed checkpoint, or of one that was trained for such a type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from gguf_tools.progress import ByteProgress
from gguf_tools.tensors.base import Tensor
from quant.exact import EXACT, pack_exactly
from quant.recipes import RECIPES
from quant.types import TensorType

PIECE = 1 << 18
"""Weights that are read and packed at a time."""
PROBE = 1 << 12
"""Weights at the begin and in the middle of a tensor that are tried first, so that a tensor without such a type costs nothing."""
LAYERS = "blk."
"""How the names of tensors inside the layers begin."""


def exact_types(named: Sequence[tuple[str, Tensor]], threads: int, progress: ByteProgress) -> Mapping[str, TensorType]:
    """By name, the smallest quantized type that holds every weight of a tensor exactly; tensors without one are left out.

    Empty unless these are at least half of the weights inside the layers: a few of them would save little, and llama.cpp computes
    with 8-bit activations where weights are quantized. `progress` receives the number of weights of each such tensor.
    """
    found: dict[str, TensorType] = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, tensor in named:
            dtype = _smallest(tensor, pool)
            if dtype is not None:
                found[name] = dtype
                progress(tensor.size)
    inside = {name: tensor.size for name, tensor in named if name.startswith(LAYERS)}
    if 2 * sum(size for name, size in inside.items() if name in found) < sum(inside.values()):
        return {}
    return found


def most_common(types: Mapping[str, TensorType], named: Sequence[tuple[str, Tensor]]) -> str:
    """The name of the recipe whose type most weights have."""
    weights: Counter[TensorType] = Counter()
    for name, tensor in named:
        if name in types:
            weights[types[name]] += tensor.size
    most = max(weights, key=lambda dtype: weights[dtype])
    return next(recipe.name for recipe in RECIPES.values() if recipe.base is most)


def summary(types: Mapping[str, TensorType], matrices: int) -> str:
    """How many of all matrices each type holds, as text."""
    counts = Counter(types.values())
    parts = [f"{dtype} holds {count}" for dtype, count in counts.most_common()]
    return f"{', '.join(parts)} of {matrices} matrices exactly"


def _smallest(tensor: Tensor, pool: ThreadPoolExecutor) -> TensorType | None:
    """The smallest type that holds all of a tensor, or None."""
    if len(tensor.shape) < 2 or not tensor.size:
        return None
    rows = tensor.size // tensor.columns
    few, many = max(1, PROBE // tensor.columns), max(1, PIECE // tensor.columns)
    probes = [(0, min(few, rows)), (rows // 2, min(rows // 2 + few, rows))]
    pieces = [(start, min(start + many, rows)) for start in range(0, rows, many)]
    for dtype in EXACT:
        if tensor.columns % dtype.block == 0 and all(
            _holds(tensor, dtype, pool, ranges) for ranges in (probes, pieces)
        ):
            return dtype
    return None


def _holds(tensor: Tensor, dtype: TensorType, pool: ThreadPoolExecutor, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether the type holds these ranges of rows; a pass ends at the first that it does not."""
    step = 8
    return all(
        all(pool.map(partial(_range_fits, tensor, dtype), ranges[at : at + step])) for at in range(0, len(ranges), step)
    )


def _range_fits(tensor: Tensor, dtype: TensorType, ends: tuple[int, int]) -> bool:
    width = tensor.columns
    rows = tensor.flat(ends[0] * width, ends[1] * width).reshape(-1, width)
    return pack_exactly(rows, dtype) is not None
