"""Which tensors' quantization the divergence of a file comes from: each is rounded alone, in a temporary F32 file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf_tools.errors import named_instead
from gguf_tools.evaluation.sensitivity import Sensitivity, divergence, measured, overwrite, read_texts
from gguf_tools.evaluation.trace.expected import Expected
from gguf_tools.formats.gguf.source import GGUFSource, GGUFTensor, open_gguf
from gguf_tools.formats.scratch import working_folder
from gguf_tools.progress import StageProgress
from gguf_tools.quantization.plan import QuantizeRequest, prepare
from gguf_tools.quantization.write import execute
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tensors.base import Tensor
from quant.types import TensorType, tensor_type

LADDER = tuple(map(tensor_type, ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "q8_0", "f16")))
"""Types in order of their bits, of which the next is what a byte more would buy."""


@dataclass(frozen=True, kw_only=True)
class TensorBudget:
    """One tensor of the file: its type and bytes, and the mean KL divergence (nats per token) if it alone is rounded to the type.

    `next_type` is the next larger type that fits the rows, and `gain` the nats that each further byte takes off in it, as
    predicted by `Sensitivity`.
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
    """The tensors by their part in the divergence, largest first; `together` is the divergence with all of them rounded.

    `sensitivity` is the measurement, which also predicts the divergence in other types.
    """

    tensors: tuple[TensorBudget, ...]
    together: float
    sensitivity: Sensitivity

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "together": self.together,
            "tensors": [one.as_dict() for one in self.tensors],
            "sensitivity": self.sensitivity.as_dict(),
        }


def budget_of(
    source: GGUFSource, expected: Expected, tokens: Sequence[int], threads: int | None, progress: StageProgress
) -> Budget | None:
    """The budget of a file over one sequence of tokens, computed by llama.cpp; None if nothing in the file is quantized.

    Raises OutputError if the temporary F32 file cannot be written.
    """
    stored = {
        output.name: (output.tensor, one.entry.type, one.entry.nbytes)
        for output in expected.lowered.tensors
        if isinstance(one := source.tensors.get(output.name), GGUFTensor) and one.shape == output.tensor.shape
    }
    sources: dict[str, Tensor] = {name: tensor for name, (tensor, _, _) in stored.items()}
    types = {name: kind for name, (_, kind, _) in stored.items() if kind.encodes and kind.name != "f32"}
    if not types:
        return None
    with working_folder("tinyq-trace") as folder:
        path = folder / "scratch.gguf"
        request = QuantizeRequest(source=source.path, type="f32", allow_requantize=True)
        execute(prepare(request), path, threads=threads or 0)
        scratch = open_gguf(path)
        overwrite(scratch, sources)
        options = RuntimeOptions(threads=threads)
        with named_instead(path, source.path, "its F32 form does not run"), Runtime(path, options) as runtime:
            probes = {name: [kind] for name, kind in types.items()}
            found = measured(runtime, scratch, sources, probes, {}, [tokens], progress)
            texts = read_texts(runtime, [tokens])
            overwrite(scratch, sources, types)
            runtime.reload()
            together = divergence(runtime, texts)
    made = [
        _priced(name, sources[name], types[name], stored[name][2], kl, found) for name, kl in found.divergences.items()
    ]
    return Budget(tensors=tuple(sorted(made, key=lambda one: -one.kl)), together=together, sensitivity=found)


def _priced(name: str, tensor: Tensor, dtype: TensorType, nbytes: int, kl: float, found: Sensitivity) -> TensorBudget:
    """The tensor's entry, with what the next larger type would take off its divergence."""
    larger = [kind for kind in LADDER if kind.bits > dtype.bits and kind in found.losses[name]]
    if not larger:
        return TensorBudget(name=name, type=dtype.name, nbytes=nbytes, kl=kl)
    more = tensor.size * (larger[0].bits - dtype.bits) / 8
    gain = max(kl - found.losses[name][larger[0]], 0.0) / more
    return TensorBudget(name=name, type=dtype.name, nbytes=nbytes, kl=kl, next_type=larger[0].name, gain=gain)
