"""A checkpoint whose model_type no family declares: whether transformers' own code for it computes what the family of its
tensors does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.model.spec import Attention, Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.text import shortened

if TYPE_CHECKING:
    from gguf_tools.evaluation.transformers_model import TransformersModel

TOKENS = 48
"""Length of the sequence that is compared: token ids spread over the vocabulary."""
BOUND = 1e-9
"""Largest NMSE of its logits, Σ|reference − transformers|² / Σ|transformers|²."""
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Keys that limit attention to so many tokens, which a short sequence may not show."""


def check_model_type(checkpoint: Checkpoint, model: Model) -> str:
    """A note on what transformers says of `model`, which a family made that does not declare the checkpoint's model_type.

    Raises UnsupportedError where transformers cannot run the checkpoint, or computes something else.
    """
    # torch takes seconds to load, and hardly any checkpoint needs this check.
    import torch

    from gguf_tools.evaluation.transformers_model import TransformersModel, fits
    from gguf_tools.reference import Reference

    kind = shortened(repr(checkpoint.config.get("model_type")))
    where = f"{checkpoint.path}: model_type {kind}"
    accept = f"if it computes what {model.family} does, say so with --as {model.family}"
    try:
        loaded = TransformersModel(checkpoint)
        _same_reach(loaded, model, where)
        count = min(TOKENS, model.spec.context_length)
        tokens = [int(n) for n in np.linspace(0, model.spec.vocab_size - 1, count).astype(int)]
        (wanted,) = loaded.logits([tokens])
    except UnsupportedError:
        raise
    except InputError as error:
        why = str(error).removeprefix(f"{checkpoint.path}: ")
        raise UnsupportedError(f"{where} is of a family that tinyq does not support ({why}); {accept}") from error
    dtype = torch.float64 if fits(model.parameters, 8) else torch.float32
    found = Reference(model, dtype).logits([tokens])[0]
    if found.shape != wanted.shape:
        raise UnsupportedError(
            f"{where}: {loaded.name} gives logits of shape {wanted.shape}, {model.family} {found.shape}"
        )
    truth = wanted.astype(np.float64)
    nmse = float(np.square(found - truth).sum() / np.square(truth).sum())
    if not nmse <= BOUND:
        raise UnsupportedError(
            f"{where} is of a family that tinyq does not support: its tensors have the names of {model.family}'s, but "
            f"{loaded.name} computes something else with them (NMSE {nmse:.1e})"
        )
    return f"model_type {kind} is computed as {model.family}: {loaded.name} computes the same (NMSE {nmse:.0e})"


def _same_reach(loaded: TransformersModel, model: Model, where: str) -> None:
    """Refuse a window of the class that no layer of the model has."""
    layers = [layer.mixer for layer in model.spec.layers]
    own = {mixer.window for mixer in layers if isinstance(mixer, Attention)}
    for key in WINDOWS:
        length = loaded.setting(key)
        if isinstance(length, int) and 0 < length < model.spec.context_length and length not in own:
            raise UnsupportedError(
                f"{where} is of a family that tinyq does not support: {loaded.name} limits attention to {length} tokens ({key}), "
                f"{model.family} does not"
            )
