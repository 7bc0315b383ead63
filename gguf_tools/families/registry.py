"""The list of all families, and recognition of the one that a checkpoint belongs to."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from gguf_tools.description.build import build as build_described
from gguf_tools.description.toml import parse_description
from gguf_tools.errors import InputError, TinyqError, UnsupportedError
from gguf_tools.families.base import CheckType, Family
from gguf_tools.families.causal import refuse_bidirectional
from gguf_tools.families.plugins import Plugin, load_plugins
from gguf_tools.families.saved_buffers import check_buffers
from gguf_tools.model.spec import Model
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint, DescriptionText, open_checkpoint
from gguf_tools.sources.restore import restore
from gguf_tools.text import expected, shortened

T = TypeVar("T")
UNEXPRESSED = {
    r"\.kv_a_proj_with_mqa\.": "multi-head latent attention (MLA)",
    r"\.(att|attention)\.(time_decay|x_[rwkvag])\b": "RWKV's time mixing",
    r"\bper_layer_model_projection\.": "per-layer embeddings",
    r"\b(value_embeds?|ve_gate)\b": "value embeddings, which add a row for each token to the attention's values",
    r"\bbigram": "embeddings of hashed pairs of tokens",
    r"\b(mudd|x0_lambdas?|resid_lambdas?|skip_weights?)\b": "weights that mix the outputs of earlier layers",
}
"""Patterns of tensors' names → what no family has, named where no family is recognised."""


@cache
def own_families() -> tuple[Family, ...]:
    """The families of this package, sorted by name."""
    package = importlib.import_module(__package__)
    names = (info.name for info in pkgutil.walk_packages(package.__path__, f"{__package__}."))
    modules = map(importlib.import_module, names)
    found = (getattr(module, "FAMILY", None) for module in modules)
    return tuple(sorted((family for family in found if isinstance(family, Family)), key=lambda family: family.name))


@cache
def _plugins() -> tuple[Plugin, ...]:
    return load_plugins(family.name for family in own_families())


def all_families() -> tuple[Family, ...]:
    """All families, including those of other distributions (`gguf_tools.families.plugins`), sorted by name."""
    families = (*own_families(), *(plugin.family for plugin in _plugins()))
    return tuple(sorted(families, key=lambda family: family.name))


def family_named(name: str) -> Family:
    """The family of this name. Raises UnsupportedError, listing the known names, if there is none."""
    for family in all_families():
        if family.name == name:
            return family
    raise UnsupportedError(f"family {name} is not known; {expected(name, _names(), 'the known families are')}")


def recognise(checkpoint: Checkpoint) -> Family:
    """The family whose `matches` accepts the checkpoint's tensors; a `by_type` family with the config's model_type wins.

    Raises UnsupportedError if no family matches (with the first tensor names), or if several do.
    """
    found = [family for family in all_families() if _call(family, "matches", family.matches, checkpoint)]
    kind = checkpoint.config.get("model_type")
    named = [family for family in found if family.by_type and kind in family.model_types]
    named += [family for family in found if family.bare and _call(family, "bare", family.bare, checkpoint)]
    matching = named or [family for family in found if not family.by_type]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(family.name for family in matching)
        raise UnsupportedError(f"{checkpoint.path}: the tensors fit several families ({names}); report this checkpoint")
    for pattern, what in UNEXPRESSED.items():
        name = next((name for name in sorted(checkpoint.tensors) if re.search(pattern, name)), None)
        if name:
            raise UnsupportedError(f"{checkpoint.path}: tensor {name} is part of {what}, which is not supported")
    first = ", ".join(sorted(checkpoint.tensors)[:4]) or "no tensors"
    raise UnsupportedError(
        f"{checkpoint.path}: no family has tensors like {first} …; the known families are {_known()}; `tinyq describe` "
        "writes a description of others"
    )


def build_model(checkpoint: Checkpoint, *, as_family: str | None = None, check_type: CheckType | None = None) -> Model:
    """Restore the checkpoint to the published layout, then build its Model with `build_published`.

    Vision and audio towers are left out with a note; use `restore` first to refuse them.
    """
    return build_published(restore(checkpoint), as_family=as_family, check_type=check_type)


def build_published(
    checkpoint: Checkpoint, *, as_family: str | None = None, check_type: CheckType | None = None
) -> Model:
    """The Model of a checkpoint in the published layout (as `restore` returns it), built by the family it matches.

    A model_type that no family declares may compute something else with the same tensors. Such a checkpoint is accepted if
    `check_type` verifies it, or if the user names a family (`as_family`: a family's name or one of its model types). A
    checkpoint with a description is built as that says, unless the user names a family.

    Raises UnsupportedError for a model_type accepted by neither, and for attention that is not causal.
    """
    refuse_bidirectional(checkpoint)
    if as_family is not None:
        return _accepted(checkpoint, as_family)
    if checkpoint.description is not None:
        return _described(checkpoint, checkpoint.description)
    kind = checkpoint.config.get("model_type")
    unknown = isinstance(kind, str) and kind not in known_types()
    try:
        family = recognise(checkpoint)
    except UnsupportedError as error:
        raise _not_supported(checkpoint, str(error)) if unknown else error from None
    if not unknown or not family.model_types:
        return _built(family, checkpoint)
    if check_type is None:
        raise _not_supported(checkpoint, f"its tensors are named as in {family.name}")
    try:
        model = _built(family, checkpoint)
    except InputError as error:
        raise _not_supported(checkpoint, f"read as {family.name}: {error}") from error
    return replace(model, notes=(*model.notes, check_type(checkpoint, model)))


def known_types() -> frozenset[str]:
    """Every model_type that a family declares."""
    return frozenset(kind for family in all_families() for kind in family.model_types)


def _accepted(checkpoint: Checkpoint, name: str) -> Model:
    """The Model built by the family that the user named (`name` is the family's, or one of its model types)."""
    family = next((family for family in all_families() if name in family.model_types), None) or family_named(name)
    kind = name if name in family.model_types else next(iter(family.model_types), None)
    config = checkpoint.config if kind is None else {**checkpoint.config, "model_type": kind}
    stated = checkpoint.config.get("model_type")
    model = _built(family, replace(checkpoint, config=config))
    if stated == kind:
        return model
    note = f"config.json says model_type {shortened(repr(stated))}; the model is converted as {name}, as requested (--as {name})"
    return replace(model, notes=(*model.notes, note))


def _built(family: Family, checkpoint: Checkpoint) -> Model:
    model = _call(family, "build", family.build, checkpoint)
    preferred = model.preferred_targets or family.preferred_targets
    return replace(_with_buffers(model, checkpoint), preferred_targets=preferred)


def _described(checkpoint: Checkpoint, stated: DescriptionText) -> Model:
    return _with_buffers(build_described(parse_description(stated.text, stated.path), checkpoint), checkpoint)


def _with_buffers(model: Model, checkpoint: Checkpoint) -> Model:
    """The model with notes on the checkpoint's buffers.

    Raises CheckpointError for one that contradicts the spec, UnsupportedError for a context length that the user gave and
    that the model's table of positions does not have.
    """
    _check_positions(checkpoint, model)
    notes = check_buffers(checkpoint.path, checkpoint.buffers, model.spec)
    return replace(model, notes=(*model.notes, *notes))


def _check_positions(checkpoint: Checkpoint, model: Model) -> None:
    """Raise UnsupportedError if the user asked for another context length than a table of learned positions has."""
    asked, rows = checkpoint.context_length, model.spec.positions
    if rows and asked not in (None, rows):
        raise UnsupportedError(
            f"{checkpoint.path}: --context-length is {asked}, but the model has learned positions, a table of {rows} rows, which "
            "is its context length; leave the option out"
        )


def _not_supported(checkpoint: Checkpoint, why: str) -> UnsupportedError:
    kind = shortened(repr(checkpoint.config.get("model_type")))
    why = why.removeprefix(f"{checkpoint.path}: ").removeprefix(f"{checkpoint.folder / CONFIG}: ")
    return UnsupportedError(
        f"{checkpoint.path}: model_type {kind} is not supported ({why}); if the model computes the same as a family that tinyq "
        "supports, name that family with --as, such as --as llama"
    )


def load_model(path: Path) -> Model:
    """Open the checkpoint at `path` and build its Model. The weights stay on disk until they are read."""
    return build_model(open_checkpoint(path))


def _names() -> list[str]:
    return [family.name for family in all_families()]


def _known() -> str:
    return ", ".join(_names())


def _call(family: Family, name: str, function: Callable[[Checkpoint], T], checkpoint: Checkpoint) -> T:
    """Call the family's function; an unexpected exception in another distribution's code becomes an error that names it."""
    owner = next((plugin.distribution for plugin in _plugins() if plugin.family is family), None)
    if owner is None:
        return function(checkpoint)
    try:
        return function(checkpoint)
    except TinyqError:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{checkpoint.path}: {name} of the family {family.name} of distribution {owner} failed ({cause}); "
            "fix or uninstall the distribution"
        ) from error
