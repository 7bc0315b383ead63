"""Selects a type for each tensor so that a file meets a target size at the lowest predicted loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gguf_tools.allocation.sensitivity import errors, own_texts, probed, read_texts
from gguf_tools.conversion.calibration import calibration_text
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.header import align, tensor_bytes
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.progress import StageProgress
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from gguf_tools.tensors.base import Tensor
from quant.allocate import Allocation, Option, allocate
from quant.encode import FloatArray
from quant.recipes import RECIPES, TypeChoice, TypeRecipe
from quant.types import (
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TensorType,
)

CANDIDATES = (Q8_0, Q6_K, Q5_K, Q5_0, Q5_1, Q4_K, Q4_0, Q4_1, Q3_K, Q2_K, IQ4_NL, IQ4_XS)
"""The types that are chosen from: those that need no importance matrix and are encoded in reasonable time."""
PROBES = (Q3_K, Q4_0)
"""Types with which a tensor's sensitivity is measured: the first whose block size divides the row length is used."""
CHUNK = 256
"""Tokens per chunk of the calibration text."""

Sources = Mapping[str, Tensor]


@dataclass(frozen=True)
class SizeTarget:
    """A target size: either `bits_per_weight`, averaged over all tensors, or `bytes` of the whole file.

    `calibration` is a text to measure on; by default these are the model's own continuations of built-in prompts.
    """

    bits_per_weight: float | None = None
    bytes: int | None = None
    calibration: Path | None = None

    @property
    def label(self) -> str:
        """The size as text, for the file's metadata and for reports."""
        return f"{self.bytes} bytes" if self.bits_per_weight is None else f"{self.bits_per_weight:g} bpw"


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
class Sensitivity:
    """For each measured tensor, the KL divergence that each type is predicted to cause, in nats per token.

    `divergences` are measurements on `tokens` tokens with only that tensor quantized, to its type in `probes`.
    """

    losses: Mapping[str, Mapping[TensorType, float]]
    divergences: Mapping[str, float]
    probes: Mapping[str, TensorType]
    tokens: int


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
            "tensors": {
                name: {"probe": measured.probes[name].name, "probe_kl": kl, "type": self.types[name].name}
                for name, kl in measured.divergences.items()
            },
        }

    @property
    def sentence(self) -> str:
        """The measurement as one line of text."""
        return (
            f"{self.target.label}: predicted KL divergence {self.allocation.loss:.1e} nats per token, measured on "
            f"{self.measured.tokens:,} tokens; the lower bound for this size is {self.allocation.bound:.1e}"
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


def fitting_candidates(shape: tuple[int, ...]) -> list[TensorType]:
    """The types whose block size divides the row length: quantized types, and F16."""
    return [dtype for dtype in (*CANDIDATES, F16) if shape[-1] % dtype.block == 0]


def choose(
    target: SizeTarget,
    scratch: Path,
    sources: Sources,
    choices: Sequence[TypeChoice],
    frame: FileOverhead,
    importance: Mapping[str, FloatArray],
    threads: int | None = None,
    progress: StageProgress | None = None,
) -> Chosen:
    """Measure each tensor's sensitivity and select the types.

    `choices` are those of a recipe and stay in effect for tensors that cannot be measured; the other arguments are those of
    `measure`. Raises InputError if the target is too small.
    """
    free = free_to_choose(choices, sources)
    _require_room(target, budget_of(target, choices, sources, free, frame), free, sources)
    measured = measure(scratch, sources, free, importance, target.calibration, threads, progress)
    return allocated(target, measured, choices, sources, frame)


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
    show = progress or (lambda stage, done, total: None)
    file = open_gguf(scratch)
    with Runtime(scratch, RuntimeOptions(threads=threads)) as runtime:
        texts = read_texts(runtime, _chunks(runtime, calibration))
        used = runtime.activations(texts.chunks, process_output=True)
        # Tensors that the forward pass does not use (multi-token prediction layers) cannot be measured. Embeddings are
        # used but have no activations, because they are looked up and not multiplied.
        reached = used.keys() | {"token_embd.weight", "per_layer_token_embd.weight"}
        probes = {
            name: next(dtype for dtype in PROBES if tensor.columns % dtype.block == 0)
            for name, tensor in sources.items()
            if name in free and name in reached and file.tensor(name).dtype == F32.name
        }
        divergences = probed(runtime, file, sources, probes, importance, texts, partial(show, "measuring"))
    losses: dict[str, dict[TensorType, float]] = {}
    for done, (name, probe) in enumerate(probes.items()):
        tensor = sources[name]
        activations = used[name].importance.reshape(-1, tensor.columns) if name in used else None
        found = errors(tensor, fitting_candidates(tensor.shape), activations, importance.get(name), name)
        scale = divergences[name] / found[probe] if found.get(probe) else 0.0
        losses[name] = {dtype: scale * error for dtype, error in found.items()}
        show("comparing types", done + 1, len(probes))
    return Sensitivity(losses, divergences, probes, sum(map(len, texts.chunks)))


def _chunks(runtime: Runtime, calibration: Path | None) -> list[list[int]]:
    size = min(CHUNK, runtime.context_limit)
    if calibration is None:
        return own_texts(runtime, size)
    tokens = runtime.tokenize(calibration_text(calibration), add_special=True)
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


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
