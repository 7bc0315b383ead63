"""Checks buffers that are saved with the weights against the model: rope frequencies, rope tables, causal masks.

transformers computes the buffers of its `rotary_emb` modules from the config and never loads them, so a difference there is
only noted. Any other buffer would be loaded and used, so a difference is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import CheckpointError
from gguf_tools.model.rope import Rope, frequencies
from gguf_tools.model.spec import Attention, ModelSpec
from gguf_tools.sources.restore.buffers import FREQUENCIES, HIDDEN, MASKED, MASKS, POSITIONS, TABLES, is_causal
from gguf_tools.tensors.base import Tensor

Numbers = NDArray[np.float64]

RECOMPUTED = re.compile(r"(.*\.)?rotary_emb\..*")
LAYER = re.compile(r"(?:.*\.)?(?:layers|blocks|h)\.(\d+)\..*")
ROWS = 512
"""Rows (positions) of a rope table that are compared; beyond them float32 angles differ by more than the tolerance."""
NARROW = ("F16", "BF16")


def check_buffers(path: Path, buffers: Mapping[str, Tensor], spec: ModelSpec) -> tuple[str, ...]:
    """Notes on the buffers. Raises CheckpointError if the saved model would compute something else than `spec` says."""
    notes = []
    for name, tensor in buffers.items():
        fault = _fault(name, tensor, spec)
        if fault is None:
            continue
        if RECOMPUTED.fullmatch(name) is None:
            raise CheckpointError(
                f"{path}: tensor {name} {fault}; converting without it would change what the model computes"
            )
        notes.append(f"{name} {fault}: the config is used, as transformers does; check it")
    if buffers:
        first = next(iter(buffers))
        which = first if len(buffers) == 1 else f"{len(buffers)} buffers (such as {first})"
        notes.append(f"{which} saved with the weights: left out, since buffers are computed, not learned")
    return tuple(notes)


def _fault(name: str, tensor: Tensor, spec: ModelSpec) -> str | None:
    """How a buffer differs from the spec, as the end of a sentence; None if it agrees."""
    if FREQUENCIES.fullmatch(name):
        return _any_rope(name, spec, lambda rope: _frequencies_fault(tensor, rope))
    table = TABLES.fullmatch(name)
    if table:
        return _any_rope(name, spec, lambda rope: _table_fault(tensor, rope, table["part"] or table["side"]))
    if MASKS.fullmatch(name):
        return None if is_causal(tensor) else f"of shape {tensor.shape} is not a causal mask"
    if MASKED.fullmatch(name):
        hides = tensor.size == 1 and tensor.numbers(0, 1)[0] <= HIDDEN
        return None if hides else f"of shape {tensor.shape} is not a large negative number, as masked scores need"
    if POSITIONS.fullmatch(name):
        counts = np.array_equal(tensor.numbers(0, tensor.size), np.arange(tensor.size))
        return None if counts else f"of shape {tensor.shape} does not hold the positions 0, 1, 2, …"
    return None


def _any_rope(name: str, spec: ModelSpec, fault: Callable[[Rope], str | None]) -> str | None:
    """`fault` of the rope of the buffer's layer. A buffer outside the layers is accepted if it fits any layer's rope."""
    match = LAYER.fullmatch(name)
    faults = [fault(rope) for rope in _ropes(spec, int(match[1]) if match else None)]
    if not faults:
        return "holds rope frequencies, but its layer has no rope"
    return None if None in faults else faults[0]


def _ropes(spec: ModelSpec, layer: int | None) -> list[Rope]:
    layers = spec.layers if layer is None else spec.layers[layer : layer + 1]
    mixers = [part.mixer for part in layers if isinstance(part.mixer, Attention)]
    return list(dict.fromkeys(mixer.rope for mixer in mixers if mixer.rope))


def _frequencies_fault(tensor: Tensor, rope: Rope) -> str | None:
    """How a saved `inv_freq`, shape (rope.dims / 2,), differs from the frequencies of `rope`; None if it does not."""
    wanted = (frequencies(rope)[0], frequencies(replace(rope, scaling=None))[0])
    if tensor.size != len(wanted[0]):
        return f"has shape {tensor.shape}, but rope rotates {rope.dims} dimensions in {len(wanted[0])} pairs"
    found = tensor.numbers(0, tensor.size)
    narrow = tensor.dtype in NARROW
    # Some classes scale the positions instead of the frequencies, so unscaled frequencies are saved.
    if any(np.allclose(found, each, rtol=1e-2 if narrow else 1e-4, atol=1e-7 if narrow else 0.0) for each in wanted):
        return None
    base = _base(found, rope.dims)
    saved = f" (base about {base:.6g})" if base else ""
    return f"has other frequencies{saved} than rope with base {rope.theta:g} and the scaling of the config"


def _base(found: Numbers, dims: int) -> float | None:
    """The base (rope_theta) computed from the last frequency; None if that frequency is not between 0 and 1."""
    if len(found) < 2 or not 0 < found[-1] < 1:
        return None
    return float(found[-1] ** (-dims / (dims - 2)))


def _table_fault(tensor: Tensor, rope: Rope, part: str | None) -> str | None:
    """How a saved table of cosines and sines differs from `rope`; None if it does not.

    `part` is "cos" or "sin" for a table of shape (positions, pairs) or (positions, 2 * pairs); None for a table of both,
    (positions, pairs, 2).
    """
    speeds, magnitude = frequencies(rope)
    shape = tuple(n for n in tensor.shape if n != 1) or (1,)
    columns = shape[-1] if part else shape[-2] if len(shape) > 2 else 0
    if part is None and shape[-1] != 2:
        columns = 0
    allowed = (rope.dims // 2, rope.dims) if part else (rope.dims // 2,)
    if columns not in allowed or len(shape) != (2 if part else 3):
        return f"has shape {tensor.shape}, which does not fit the {rope.dims} dimensions that rope rotates"
    rows = min(shape[0], ROWS)
    found = tensor.numbers(0, rows * (columns if part else 2 * columns)).reshape(rows, *shape[1:])
    angles = np.outer(np.arange(rows), speeds)
    if columns == rope.dims and part:
        angles = np.tile(angles, 2) if rope.pairs == "half" else np.repeat(angles, 2, axis=1)
    both = {"cos": np.cos(angles) * magnitude, "sin": np.sin(angles) * magnitude}
    wanted = both[part] if part else np.stack([both["cos"], both["sin"]], -1)
    if np.allclose(found, wanted, rtol=0, atol=2e-2 if tensor.dtype in NARROW else 1e-3):
        return None
    return f"differs from the table of rope with base {rope.theta:g} and {rope.pairs} pairs"
