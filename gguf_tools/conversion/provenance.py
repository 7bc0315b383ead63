"""The `tinyq.*` metadata: how a file was made."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_tools import __version__
from gguf_tools.conversion.auto_type import TypeDecision
from gguf_tools.conversion.request import Request
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import (
    RESERVE_BYTES,
    Metadata,
    ValueType,
    array,
    f32,
    string,
    u64,
)
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.rewrites.approximations import LayerFit, LogitFit
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.targets.planner import Plan

RECIPE_FILE = "tinyq-recipe.toml"
"""The file with the surgery recipe, in the folder of a checkpoint that surgery wrote."""


def provenance(made: Plan, notes: Sequence[str], decision: TypeDecision) -> Metadata:
    """Version, family, target, type, rewrites and approximation of a conversion, and its `notes`."""
    values: Metadata = {
        keys.VERSION: string(__version__),
        keys.FAMILY: string(made.model.family),
        keys.TARGET: string(made.target.name),
        keys.TYPE: string(decision.name),
    }
    if made.rewrites:
        values[keys.REWRITES] = array(ValueType.STRING, [rewrite.name for rewrite in made.rewrites])
        values[keys.REWRITES_EXTRA_PARAMETERS] = u64(made.extra_parameters)
        values[keys.REWRITES_EXTRA_CACHE] = u64(made.extra_cache)
    if made.approximation:
        layers = [fit for fit in made.fits if isinstance(fit, LayerFit)]
        values |= {
            keys.APPROXIMATE: array(ValueType.STRING, [made.approximation.name]),
            keys.APPROXIMATE_LAYERS: array(ValueType.UINT32, [fit.layer for fit in layers]),
            keys.APPROXIMATE_AGREEMENT: array(ValueType.FLOAT32, [fit.agreement for fit in layers]),
            keys.APPROXIMATE_WEIGHT_ERROR: array(ValueType.FLOAT32, [fit.weight_error for fit in layers]),
            keys.APPROXIMATE_SLOPE: array(ValueType.FLOAT32, [fit.slope for fit in layers]),
        }
        for fit in made.fits:
            if isinstance(fit, LogitFit):
                values[keys.APPROXIMATE_KL] = f32(fit.kl)
    if notes:
        values[keys.NOTES] = array(ValueType.STRING, notes)
    return values


def accepted_metadata(request: Request, checkpoint: Checkpoint) -> Metadata:
    """The family that the user accepted by name (--as), or the description that the checkpoint was read by."""
    if request.as_family is not None:
        return {keys.AS_FAMILY: string(request.as_family)}
    return {} if checkpoint.description is None else {keys.DESCRIPTION: string(checkpoint.description.text)}


def surgery_metadata(request: Request, checkpoint: Checkpoint) -> Metadata:
    """The surgery done in this conversion and earlier on the checkpoint, and reserved space for later edits in place."""
    values: Metadata = {keys.RESERVE: string(" " * RESERVE_BYTES)}
    history = checkpoint.folder / RECIPE_FILE
    if checkpoint.path.is_dir() and history.exists():
        values[keys.SOURCE_RECIPE] = string(read_text(history, Kind.RECIPE))
    if request.operation:
        values[keys.SURGERY] = string(request.operation.text)
    return values
