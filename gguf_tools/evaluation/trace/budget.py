"""Which tensors' quantization the divergence of a file comes from: each is rounded alone, in the torch reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gguf_tools.evaluation.metrics import kl_divergence
from gguf_tools.evaluation.trace.expected import Expected, as_file, rounded_to
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor
from gguf_tools.model.spec import Model
from gguf_tools.progress import StageProgress
from gguf_tools.reference import Reference
from gguf_tools.reference.weights import load_all
from gguf_tools.targets.base import OutputTensor
from quant.types import TensorType, tensor_type

LADDER = tuple(map(tensor_type, ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0", "f16")))
"""Types in order of their bits, of which the next is what a byte more would buy."""


@dataclass(frozen=True, kw_only=True)
class TensorBudget:
    """One tensor of the file: its type and bytes, and the mean KL divergence (nats per token) if it alone is rounded to the type.

    `next_type` is the next larger type that fits the rows, and `gain` the nats that each further byte takes off in it, if the
    divergence falls in proportion to the squared error of the weights.
    """

    name: str
    type: str
    nbytes: int
    kl: float
    next_type: str | None = None
    gain: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "type": self.type,
            "bytes": self.nbytes,
            "kl": self.kl,
            "next_type": self.next_type,
            "kl_per_byte": self.gain,
        }


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The tensors by their part in the divergence, largest first; `together` is the divergence with all of them rounded."""

    tensors: tuple[TensorBudget, ...]
    together: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"together": self.together, "tensors": [one.as_dict() for one in self.tensors]}


def budget_of(source: GGUFSource, expected: Expected, tokens: Sequence[int], progress: StageProgress) -> Budget | None:
    """The budget of a file over one sequence of tokens; None if nothing in it is quantized."""
    chosen = [
        (output, stored.entry.type, stored.entry.nbytes)
        for output in expected.lowered.tensors
        if isinstance(stored := source.tensors.get(output.name), GGUFTensor)
        and stored.shape == output.tensor.shape
        and stored.entry.type.encodes
        and stored.entry.type.name != "f32"
    ]
    if not chosen:
        return None
    reference = Reference(as_file(source, expected.lowered, {}), torch.float32)
    exact = reference.logits([list(tokens)])[0]
    made = []
    for done, (output, dtype, nbytes) in enumerate(chosen):
        progress("rounding tensors", done, len(chosen))
        values = rounded_to(output.tensor, dtype)
        changed = _with(reference, as_file(source, expected.lowered, {output.name: values}), output.name)
        kl = float(np.mean(kl_divergence(exact, changed.logits([list(tokens)])[0])))
        made.append(_priced(output, dtype, nbytes, kl))
    everything = {output.name: rounded_to(output.tensor, dtype) for output, dtype, _ in chosen}
    together = Reference(as_file(source, expected.lowered, everything), torch.float32).logits([list(tokens)])[0]
    return Budget(
        tensors=tuple(sorted(made, key=lambda one: -one.kl)), together=float(np.mean(kl_divergence(exact, together)))
    )


def _with(reference: Reference, model: Model, name: str) -> Reference:
    """The reference with the weights of the layer that the tensor is in, or of those outside the layers, from `model`."""
    made = copy.copy(reference)
    if not name.startswith("blk."):
        made.weights = load_all(model.tensors, reference.dtype)
        return made
    n = int(name.split(".")[1])
    made.layers = [*reference.layers[:n], load_all(model.layer_tensors[n], reference.dtype), *reference.layers[n + 1 :]]
    return made


def _priced(output: OutputTensor, dtype: TensorType, nbytes: int, kl: float) -> TensorBudget:
    """The tensor's entry, with what the next larger type would take off its divergence."""
    made = TensorBudget(name=output.name, type=dtype.name, nbytes=nbytes, kl=kl)
    bits = dtype.block_bytes / dtype.block
    larger = [
        kind for kind in LADDER if kind.block_bytes / kind.block > bits and output.tensor.columns % kind.block == 0
    ]
    if not larger:
        return made
    exact = output.tensor.array()
    errors = [float(np.square(rounded_to(output.tensor, kind).array() - exact).sum()) for kind in (dtype, larger[0])]
    more = output.tensor.size * (larger[0].block_bytes / larger[0].block - bits)
    saved = kl * (1.0 - errors[1] / errors[0]) if errors[0] else 0.0
    return TensorBudget(
        name=made.name, type=made.type, nbytes=nbytes, kl=kl, next_type=larger[0].name, gain=max(saved, 0.0) / more
    )
