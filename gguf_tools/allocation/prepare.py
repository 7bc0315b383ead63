"""Conversion and quantization to a target size: types are selected by measuring on a temporary F32 file beside the output."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gguf_tools.allocation.choose import Chosen, FileOverhead, choose, measure, nearest_recipe
from gguf_tools.allocation.target import SizeTarget
from gguf_tools.conversion import plan as conversion
from gguf_tools.conversion.auto_type import TypeDecision
from gguf_tools.conversion.plan import Conversion
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute as write_conversion
from gguf_tools.conversion.write import placed_metadata
from gguf_tools.errors import InputError, named_instead
from gguf_tools.evaluation.sensitivity import Sensitivity
from gguf_tools.formats.temporary import scratch_folder
from gguf_tools.progress import StageProgress
from gguf_tools.quantization import plan as quantization
from gguf_tools.quantization.plan import Quantization, QuantizeRequest
from gguf_tools.quantization.write import execute as write_quantization
from gguf_tools.tensors.base import Tensor
from quant.options import TypeOptions

RUN = "its F32 form, on which the types are measured, does not run"


def prepare_conversion(
    request: Request, target: SizeTarget, out: Path, progress: StageProgress | None = None
) -> tuple[Conversion, Chosen]:
    """Plan a conversion to a target size. Errors as `conversion.plan.prepare`; InputError if the target is too small."""
    if request.options.pure:
        raise InputError("a target size cannot be combined with --pure; leave one of them out")
    opened = conversion.open_source(request)
    weights = sum(tensor.size for tensor in opened.tensors)
    request = replace(request, type=nearest_recipe(target, weights).name, label=target.label)
    plan = conversion.prepare(request, opened)
    sources = {choice.name: tensor for choice, tensor in zip(plan.choices, plan.tensors, strict=True)}
    frame = FileOverhead(plan.layout.size(placed_metadata(plan, out)) - plan.layout.data_bytes, plan.layout.alignment)

    def measuring(free: frozenset[str]) -> Sensitivity:
        with scratch_folder(out) as folder:
            scratch = folder / "scratch.gguf"
            exact = conversion.prepare(replace(request, type="f32", options=TypeOptions(), imatrix=None), opened)
            write_conversion(exact, scratch, threads=request.workers)
            threads = request.threads or None
            with named_instead(scratch, request.source, RUN):
                return measure(scratch, sources, free, plan.importance, target.calibration, threads, progress)

    chosen = choose(target, sources, plan.choices, frame, measuring)
    made = conversion.prepare(replace(request, options=replace(request.options, types=chosen.types)), opened)
    return replace(made, decision=TypeDecision(target.label, "types selected by measured sensitivity")), chosen


def prepare_quantization(
    request: QuantizeRequest,
    target: SizeTarget,
    out: Path,
    *,
    threads: int = 0,
    progress: StageProgress | None = None,
) -> tuple[Quantization, Chosen]:
    """Plan a quantization to a target size.

    Errors as `quantization.plan.prepare` and `quantization.write.execute`; InputError if the target is too small.
    """
    if request.options.pure or request.split_max_size is not None:
        raise InputError("a target size cannot be combined with --pure or --split-max-size; leave them out")
    request = replace(request, label=target.label)
    weights = quantization.prepare(request).report.weights
    request = replace(request, type=nearest_recipe(target, weights).name)
    plan = quantization.prepare(request)
    sources: dict[str, Tensor] = {tensor.entry.name: tensor for tensor in plan.tensors}
    frame = FileOverhead(
        plan.size - sum(part.layout.data_bytes for part in plan.parts),
        max(part.layout.alignment for part in plan.parts),
    )

    def measuring(free: frozenset[str]) -> Sensitivity:
        with scratch_folder(out) as folder:
            scratch = folder / "scratch.gguf"
            exact = quantization.prepare(QuantizeRequest(source=request.source, type="f32", allow_requantize=True))
            write_quantization(exact, scratch, threads=threads)
            with named_instead(scratch, request.source, RUN):
                return measure(scratch, sources, free, plan.importance, target.calibration, threads or None, progress)

    chosen = choose(target, sources, plan.choices, frame, measuring)
    return quantization.prepare(replace(request, options=replace(request.options, types=chosen.types))), chosen
