"""A quantization to a size: types chosen by measuring on an F32 copy beside the output."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.quantize import Quantization, QuantizeRequest, execute, prepare
from gguf_tools.target_size import Chosen, Frame, Target, choose, nearest_recipe
from gguf_tools.tensors import Tensor


def prepare_target(
    request: QuantizeRequest,
    target: Target,
    out: Path,
    *,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Quantization, Chosen]:
    """Plan a quantization to a size.

    Errors as `prepare` and `execute`; InputError where the target is too small.
    """
    if request.options.pure or request.split_max_size is not None:
        raise InputError("a target size contradicts --pure and --split-max-size; leave them out")
    request = replace(request, label=target.label)
    weights = prepare(request).report.weights
    request = replace(request, type=nearest_recipe(target, weights).name)
    plan = prepare(request)
    sources: dict[str, Tensor] = {tensor.entry.name: tensor for tensor in plan.tensors}
    frame = Frame(
        plan.size - sum(part.layout.data_bytes for part in plan.parts),
        max(part.layout.alignment for part in plan.parts),
    )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        scratch = Path(folder) / "scratch.gguf"
        execute(prepare(QuantizeRequest(request.source, "f32", allow_requantize=True)), scratch, threads=threads)
        chosen = choose(target, scratch, sources, plan.choices, frame, plan.importance, threads or None, progress)
    return prepare(replace(request, options=replace(request.options, types=chosen.types))), chosen
