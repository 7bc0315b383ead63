"""A conversion to a size: types chosen by measuring, on an F32 file made beside the output, then one pass as always."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gguf_tools.auto_type import TypeDecision
from gguf_tools.convert import Conversion, Request, execute, open_source, placed_metadata, prepare
from gguf_tools.errors import InputError
from gguf_tools.target_size import Chosen, Frame, Target, choose, nearest_recipe
from quant.recipes import Options


def prepare_target(
    request: Request, target: Target, out: Path, progress: Callable[[str, int, int], None] | None = None
) -> tuple[Conversion, Chosen]:
    """Plan a conversion to a size. Errors as `convert.prepare`; InputError where the target is too small."""
    if request.options.pure:
        raise InputError("a target size contradicts --pure; leave it out")
    opened = open_source(request)
    weights = sum(tensor.size for tensor in opened.tensors)
    request = replace(request, type=nearest_recipe(target, weights).name, label=target.label)
    plan = prepare(request, opened)
    sources = {choice.name: tensor for choice, tensor in zip(plan.choices, plan.tensors, strict=True)}
    frame = Frame(plan.layout.size(placed_metadata(plan, out)) - plan.layout.data_bytes, plan.layout.alignment)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        scratch = Path(folder) / "scratch.gguf"
        exact = prepare(replace(request, type="f32", options=Options(), imatrix=None), opened)
        execute(exact, scratch, threads=request.workers)
        chosen = choose(
            target, scratch, sources, plan.choices, frame, plan.importance, request.threads or None, progress
        )
    made = prepare(replace(request, options=replace(request.options, types=chosen.types)), opened)
    return replace(made, decision=TypeDecision(target.label, "types chosen by measuring")), chosen
