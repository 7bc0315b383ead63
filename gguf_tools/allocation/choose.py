"""Selects a type for each tensor so that a file meets a target size at the lowest predicted loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf_tools.allocation.given import read_sensitivity
from gguf_tools.allocation.target import SizeTarget
from gguf_tools.conversion.calibration import calibration_text
from gguf_tools.errors import InputError
from gguf_tools.evaluation.effort import most_runs, most_tokens
from gguf_tools.evaluation.sensitivity import (
    CANDIDATES,
    Sensitivity,
    Sources,
    fitting_candidates,
    measured,
    own_texts,
)
from gguf_tools.formats.gguf.header import align, tensor_bytes
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.progress import CountProgress, StageProgress
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tensors.base import Tensor
from quant.allocate import Allocation, Option, allocate
from quant.encode import FloatArray
from quant.recipes import RECIPES, TypeChoice, TypeRecipe
from quant.types import F32, Q3_K, Q4_0, TensorType

PROBES = (Q3_K, Q4_0)
"""Types with which a tensor's sensitivity is measured: the first that fits its rows and changes it is used."""
CHUNK = 256
"""Tokens per chunk of the calibration text."""


@dataclass(frozen=True)
class FileOverhead:
    """A file's size besides tensor data: `header` bytes, and padding to a multiple of `alignment` bytes after each tensor."""

    header: int
    alignment: int


@dataclass(frozen=True)
class Budget:
    """Bytes available to the tensors whose types are to be selected; each tensor's size is rounded up to `alignment`."""

    bytes: int
    alignment: int = 1


@dataclass(frozen=True)
class Chosen:
    """The result: the type of each quantized tensor, the measured sensitivities, and the allocation with its predicted loss."""

    target: SizeTarget
    types: Mapping[str, TensorType]
    measured: Sensitivity
    allocation: Allocation

    def as_dict(self) -> dict[str, object]:
        """The measurement as plain data, for JSON."""
        measured = self.measured
        return {
            "target": self.target.label,
            "predicted_kl": self.allocation.loss,
            "bound_kl": self.allocation.bound,
            "calibration_tokens": measured.tokens,
            "sensitivity": measured.as_dict(),
            "tensors": {
                name: {"probe": measured.probes[name].name, "probe_kl": kl, "type": self.types[name].name}
                for name, kl in measured.divergences.items()
            },
        }

    @property
    def sentence(self) -> str:
        """The measurement as one line of text."""
        measured = self.measured
        groups = f" in {measured.runs} groups of tensors" if measured.runs < len(measured.losses) else ""
        return (
            f"{self.target.label}: predicted KL divergence {self.allocation.loss:.1e} nats per token, measured on "
            f"{measured.tokens:,} tokens{groups}; the lower bound for this size is {self.allocation.bound:.1e}"
        )


def budget_of(
    target: SizeTarget, choices: Sequence[TypeChoice], sources: Sources, free: frozenset[str], frame: FileOverhead
) -> Budget:
    """Bytes that `target` leaves for the tensors in `free`; a size in bytes also covers the header and padding."""
    alignment = 1 if target.bytes is None else frame.alignment
    taken = sum(
        align(tensor_bytes(choice.type, sources[choice.name].shape), alignment)
        for choice in choices
        if choice.name not in free
    )
    if target.bytes is not None:
        return Budget(target.bytes - frame.header - taken, alignment)
    assert target.bits_per_weight is not None
    return Budget(int(target.bits_per_weight * sum(tensor.size for tensor in sources.values()) / 8) - taken)


def free_to_choose(choices: Sequence[TypeChoice], sources: Sources) -> frozenset[str]:
    """Names of the quantized tensors without a type given by the user, whose rows fit more than one type."""
    return frozenset(
        choice.name
        for choice in choices
        if not choice.kept and not choice.asked_for and len(fitting_candidates(sources[choice.name].shape)) > 1
    )


def choose(
    target: SizeTarget,
    sources: Sources,
    choices: Sequence[TypeChoice],
    frame: FileOverhead,
    measuring: Callable[[frozenset[str]], Sensitivity],
) -> Chosen:
    """Measure each tensor's sensitivity, or take it from the target's report, and select the types.

    `choices` are those of a recipe and stay in effect for tensors that cannot be measured. `measuring` is called with the names
    of the tensors to measure. Raises InputError if the target is too small, or the report does not fit (`read_sensitivity`).
    """
    free = free_to_choose(choices, sources)
    _require_room(target, budget_of(target, choices, sources, free, frame), free, sources)
    found = read_sensitivity(target.sensitivity, sources, free) if target.sensitivity else measuring(free)
    return allocated(target, found, choices, sources, frame)


def measure(
    scratch: Path,
    sources: Sources,
    free: frozenset[str],
    importance: Mapping[str, FloatArray],
    calibration: Path | None = None,
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> Sensitivity:
    """The predicted loss of each tensor in `free` for each type that fits it, measured on a text (see `SizeTarget`).

    `scratch` is a GGUF with the tensors of `sources`, in F32 where they may be quantized; its tensors are overwritten one at a
    time and then restored. `importance` has the importance matrix of each tensor for the encoder, shape (matrices, columns).
    """
    file = open_gguf(scratch)
    probes = {
        name: [dtype for dtype in (*PROBES, *CANDIDATES) if tensor.columns % dtype.block == 0]
        for name, tensor in sources.items()
        if name in free and file.tensor(name).dtype == F32.name
    }
    with Runtime(scratch, RuntimeOptions(threads=threads)) as runtime:
        show = progress or (lambda *_: None)
        weights = sum(sources[name].size for name in probes)
        most = most_tokens(len(probes), weights)
        chunks = _chunks(runtime, calibration, most, partial(show, "generating text"))
        runs = most_runs(sum(map(len, chunks)), weights)
        return measured(runtime, file, sources, probes, importance, chunks, show, runs)


def _chunks(runtime: Runtime, calibration: Path | None, most: int, progress: CountProgress) -> list[list[int]]:
    """Chunks of about `most` tokens in all, of the calibration text or of the model's own."""
    size = min(CHUNK, runtime.context_limit)
    if calibration is None:
        return own_texts(runtime, size, most, progress)
    tokens = runtime.tokenize(calibration_text(calibration), add_special=True)
    return [tokens[start : start + size] for start in range(0, min(len(tokens), most), size)]


def allocated(
    target: SizeTarget, measured: Sensitivity, choices: Sequence[TypeChoice], sources: Sources, frame: FileOverhead
) -> Chosen:
    """The types that meet `target` at the lowest predicted loss. Raises InputError if the target is too small."""
    budget = budget_of(target, choices, sources, frozenset(measured.losses), frame)
    options = [
        [Option(dtype, _size(dtype, sources[name], budget), loss) for dtype, loss in losses.items()]
        for name, losses in measured.losses.items()
    ]
    allocation = allocate(options, budget.bytes)
    types = {choice.name: choice.type for choice in choices if not choice.kept}
    types |= {name: option.type for name, option in zip(measured.losses, allocation.options, strict=True)}
    return Chosen(target, types, measured, allocation)


def _size(dtype: TensorType, tensor: Tensor, budget: Budget) -> int:
    return align(tensor_bytes(dtype, tensor.shape), budget.alignment)


def _require_room(target: SizeTarget, budget: Budget, free: frozenset[str], sources: Sources) -> None:
    """Raises InputError if the target is too small even with the smallest types; called before the measurement."""
    least = sum(
        min(_size(dtype, sources[name], budget) for dtype in fitting_candidates(sources[name].shape)) for name in free
    )
    if least > budget.bytes:
        short = least - budget.bytes
        raise InputError(
            f"target {target.label} is too small: with the smallest types the file is {short:,} bytes larger; give a larger "
            "target"
        )


def nearest_recipe(target: SizeTarget, weights: int) -> TypeRecipe:
    """The quantized recipe whose base type is nearest to the target in bits per weight; it gives `general.file_type`."""
    bits = target.bits_per_weight if target.bytes is None else 8 * target.bytes / weights
    assert bits is not None
    return min((one for one in RECIPES.values() if one.base in CANDIDATES), key=lambda one: abs(one.base.bits - bits))
