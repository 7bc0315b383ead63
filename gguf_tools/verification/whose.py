"""Identifies the contents of a tensor that differs from the expected one: another layer's tensor, or reordered experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from gguf_tools.formats.gguf.source import GGUFTensor
from gguf_tools.tensors.base import Tensor
from quant.encode import FloatArray

SAMPLE = 4096
"""Number of weights that are compared."""
LIKE = 0.4
"""Relative error up to which weights count as an encoding of the source's; that of unrelated weights is about 1.4."""
MOST = 512
"""Maximum number of experts or layers that are compared."""

_LAYER = re.compile(r"blk\.\d+\.(.+)")


def whose_layer(given: GGUFTensor, name: str, sources: Mapping[str, Tensor]) -> str:
    """The name of the other layer's tensor whose weights `given` has, or ""."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return ""
    shape = sources[name].shape
    others = (
        other
        for other, tensor in sources.items()
        if other != name and tensor.shape == shape and (found := _LAYER.fullmatch(other)) and found[1] == match[1]
    )
    return _nearest(given.flat(0, min(SAMPLE, given.size)), ((other, sources[other], 0) for other in others))


def whose_experts(given: Tensor, source: Tensor, matrices: Iterable[int]) -> dict[int, int]:
    """For the differing `matrices` (experts) of a tensor: the index of the source's matrix that each has instead, if any."""
    size = source.size // source.shape[0]
    experts = min(source.shape[0], MOST)
    held: dict[int, int] = {}
    for matrix in list(matrices)[:MOST]:
        mine = given.flat(matrix * size, matrix * size + min(SAMPLE, size))
        others = ((str(n), source, n * size) for n in range(experts))
        found = _nearest(mine, others)
        if found and int(found) != matrix:
            held[matrix] = int(found)
    return held


def _nearest(mine: FloatArray, others: Iterable[tuple[str, Tensor, int]]) -> str:
    """The label of the first (label, tensor, offset) in `others` with nearly the same weights as `mine` from that offset on."""
    best, label = LIKE, ""
    for count, (name, tensor, start) in enumerate(others):
        if count == MOST:
            break
        theirs = tensor.flat(start, start + len(mine)).astype(np.float64)
        size = float(np.sqrt(np.square(theirs).sum()))
        with np.errstate(all="ignore"):
            error = float(np.sqrt(np.square(mine - theirs).sum())) / size if size else np.inf
        if error < best:
            best, label = error, name
    return label
