"""Checks a checkpoint whose model_type no family declares: whether its transformers class gives the same logits as the family
that its tensors match."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.model.spec import Attention, Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.error import nmse
from gguf_tools.text import shortened

if TYPE_CHECKING:
    from gguf_tools.evaluation.transformers_model import TransformersModel

TOKENS = 48
"""Length of the compared sequence; its token ids are spread evenly over the vocabulary."""
BOUND = 1e-9
"""Largest accepted NMSE of the logits, Σ|reference − transformers|² / Σ|transformers|²."""
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Config keys that limit attention to a number of tokens, which has no effect on a short sequence."""


def check_model_type(checkpoint: Checkpoint, model: Model) -> str:
    """Compare `model`, built by a family that does not declare the checkpoint's model_type, with transformers.

    Returns a note if the logits are equal. Raises UnsupportedError if they differ, or if transformers cannot run the
    checkpoint.
    """
    # torch takes seconds to import, and few checkpoints need this check.
    import torch

    from gguf_tools.evaluation.transformers_model import TransformersModel, fits
    from gguf_tools.reference import Reference

    kind = shortened(repr(checkpoint.config.get("model_type")))
    where = f"{checkpoint.path}: model_type {kind}"
    accept = f"if the model computes the same as {model.family}, give --as {model.family}"
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
        raise UnsupportedError(f"{where} is not supported ({why}); {accept}") from error
    dtype = torch.float64 if fits(model.parameters, 8) else torch.float32
    found = Reference(model, dtype).logits([tokens])[0]
    if found.shape != wanted.shape:
        raise UnsupportedError(
            f"{where} is not supported: {loaded.name} gives logits of shape {wanted.shape}, {model.family} {found.shape}"
        )
    gap = nmse(wanted, found)
    if not gap <= BOUND:
        raise UnsupportedError(
            f"{where} is not supported: its tensors are named as in {model.family}, but {loaded.name} gives other logits "
            f"(NMSE {gap:.1e})"
        )
    return f"model_type {kind} is converted as {model.family}: {loaded.name} gives the same logits (NMSE {gap:.0e})"


def _same_reach(loaded: TransformersModel, model: Model, where: str) -> None:
    """Raise UnsupportedError if the transformers class has an attention window that no layer of the model has."""
    layers = [layer.mixer for layer in model.spec.layers]
    own = {mixer.window for mixer in layers if isinstance(mixer, Attention)}
    for key in WINDOWS:
        length = loaded.setting(key)
        if isinstance(length, int) and 0 < length < model.spec.context_length and length not in own:
            raise UnsupportedError(
                f"{where} is not supported: {loaded.name} limits attention to {length} tokens ({key}), {model.family} does not"
            )
