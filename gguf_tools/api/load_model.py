"""The public function `load_model`."""

from __future__ import annotations

from pathlib import Path

from gguf_tools.api.checked import checked
from gguf_tools.api.options import Donors, at_least, recipe_of
from gguf_tools.api.results.model import LoadedModel
from gguf_tools.errors import InputError
from gguf_tools.evaluation.type_check import check_model_type
from gguf_tools.families.registry import build_published
from gguf_tools.formats.gguf.header import is_gguf
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.machine import MOST_COUNT
from gguf_tools.sources.checkpoint import open_checkpoint
from gguf_tools.sources.hub import local_source
from gguf_tools.sources.restore import restore
from gguf_tools.targets.registry import lift
from surgery.donors import operate_with_donors
from surgery.recipe import Recipe


@checked
def load_model(
    source: str | Path,
    *,
    text_only: bool = False,
    as_family: str | None = None,
    context_length: int | None = None,
    surgery: str | Path | Recipe | None = None,
    donors: Donors | None = None,
) -> LoadedModel:
    """Load a checkpoint or a GGUF as a model: its spec, and its weights by role, read lazily.

    `text_only`, `as_family`, `context_length`, `surgery` and `donors` are those of `convert`; for a GGUF only the last two are
    allowed. The result's `logits` runs the torch reference.

    Raises CheckpointError if the source is broken, UnsupportedError if no family or target supports it, InputError if the
    recipe does not fit the model.
    """
    path = local_source(source)
    at_least("--context-length", context_length, 1, MOST_COUNT)
    if path.is_file() and is_gguf(path):
        if text_only or context_length is not None or as_family is not None:
            raise InputError(
                f"{path}: is a GGUF, but text_only, as_family and context_length apply to checkpoints only; omit them"
            )
        model = lift(open_gguf(path))
    else:
        checkpoint = restore(open_checkpoint(path), text_only=text_only)
        if context_length is not None:
            checkpoint = checkpoint.with_context_length(context_length)
        model = build_published(checkpoint, as_family=as_family, check_type=check_model_type)
    return LoadedModel(path, model if surgery is None else operate_with_donors(model, recipe_of(surgery, donors)))
