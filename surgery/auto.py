"""Ops that measure first: which layers to delete, and which experts to drop, is told from what they do on a text.

The model runs over the text in llama.cpp, whose evaluation callback shows the residual stream around each layer and each routed
expert's weighted output. The result is a recipe with explicit indices, which needs no measuring to be done again.

- Layers (`delete(auto:N)`): the N with the smallest mean relative update ‖out - in‖ / ‖in‖, which ranks single deletions by their
  damage better than block influence, 1 - cos(in, out) (ShortGPT, Men et al. 2024, arXiv 2403.03853), on both models measured
  (Spearman 0.85 and 0.83 against 0.78 and 0.69); `by=influence` takes the latter.
- Experts (`drop-experts(auto:25%)`): in each layer those with the smallest REAP saliency, the mean over the tokens routed to an
  expert of router weight times the norm of its output (Lasby et al. 2025, arXiv 2510.13999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from gguf_tools.conversion.calibration import calibration_text
from gguf_tools.conversion.plan import prepare
from gguf_tools.conversion.request import Request
from gguf_tools.conversion.write import execute
from gguf_tools.errors import InputError, named_instead
from gguf_tools.evaluation.text_files import read_text
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.temporary import scratch_folder
from gguf_tools.progress import CountProgress
from gguf_tools.runtime.interface import LayerStatistics
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.ops.base import Op, Span
from surgery.ops.experts import DropExpertsOp
from surgery.ops.order import Delete
from surgery.recipe import Recipe

CHUNK = 512
"""Tokens that are read at once, or as many as the model's context holds."""
MOST = 16
"""Chunks that are read of a text, at most."""


@dataclass(frozen=True)
class Choice:
    """What was measured for an op, and the ops that it becomes."""

    op: Op
    ops: tuple[Op, ...]
    statistics: LayerStatistics
    text: str


def is_auto(recipe: Recipe) -> bool:
    """Whether an op of the recipe is to be resolved by measuring.

    InputError where it is not the first: what is measured is the source as it is.
    """
    found = next((n for n, op in enumerate(recipe.ops) if op.measures), None)
    if found:
        raise InputError(
            f"{recipe.ops[found]}: measures the model as it is, so it has to be the first op; put it first, or operate twice"
        )
    return found == 0


def resolve(
    recipe: Recipe,
    source: Path,
    text: Path | None,
    beside: Path,
    threads: int | None = None,
    progress: CountProgress | None = None,
) -> tuple[Recipe, Choice]:
    """The recipe with explicit indices in its first op, told by running `source` over a text, and what was measured.

    A checkpoint is converted first, to a temporary file beside `beside`. `progress` gets (done, total) tokens.

    Raises InputError for a text that is empty, and for more layers or experts than there are; LlamaError where llama.cpp's graph
    of the architecture does not show what is measured.
    """
    first, *rest = recipe.ops
    content, name = (calibration_text(None), "the built-in text") if text is None else (read_text(text), str(text))
    if source.is_file() and is_gguf(source):
        found = measure(source, content, threads, progress)
    else:
        with scratch_folder(beside) as folder:
            request = Request(source=source, threads=threads or 0, check_type=check_model_type)
            file = execute(prepare(request), folder / "measured.gguf", threads=request.workers).path
            with named_instead(file, source, "its converted form does not run"):
                found = measure(file, content, threads, progress)
    ops = resolved(first, found)
    return replace(recipe, ops=(*ops, *rest)), Choice(first, ops, found, name)


def measure(
    file: Path, text: str, threads: int | None = None, progress: CountProgress | None = None
) -> LayerStatistics:
    """What each layer and expert of a GGUF does to the residual stream while llama.cpp reads a text."""
    with Runtime(file, RuntimeOptions(threads=threads)) as runtime:
        size = min(CHUNK, runtime.context_limit)
        tokens = runtime.tokenize(text, add_special=True)
        chunks = [tokens[start : start + size] for start in range(0, len(tokens), size)][:MOST]
        if not chunks:
            raise InputError("the text to measure on holds no tokens; give a text such as the model will see (--text)")
        return runtime.layer_changes(chunks, progress)


def resolved(op: Op, found: LayerStatistics) -> tuple[Op, ...]:
    """The ops with explicit indices that an op becomes by what was measured."""
    if isinstance(op, Delete):
        scores = found.influence if op.by == "influence" else found.update_norm
        if op.auto >= len(scores):
            raise InputError(f"{op}: {op.auto} of {len(scores)} layers would go; leave at least one")
        return (Delete(spans(smallest(scores, op.auto))),)
    assert isinstance(op, DropExpertsOp)
    if not found.saliency:
        raise InputError(f"{op}: the model has no routed experts whose weighted outputs llama.cpp shows")
    made = []
    for layer, scores in found.saliency.items():
        count = int(len(scores) * op.share) if op.share else op.auto
        if not 0 < count < len(scores):
            raise InputError(
                f"{op}: {count} of the {len(scores)} experts of layer {layer} would go; 1 to {len(scores) - 1} can"
            )
        made.append(DropExpertsOp((layer, layer), smallest(scores, count)))
    return tuple(made)


def smallest(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The indices of the smallest scores in rising order; of equal scores the first."""
    return tuple(sorted(np.argsort(scores, kind="stable")[:count].tolist()))


def spans(indices: Sequence[int]) -> tuple[Span, ...]:
    """Rising indices as runs."""
    runs = (list(run) for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]))
    return tuple((run[0][1], run[-1][1]) for run in runs)
