"""The torch reference of a GGUF after surgery on its own weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gguf_tools.errors import InputError
from gguf_tools.formats.gguf.source import open_gguf
from gguf_tools.targets.registry import lift
from surgery.donors import operate_with_donors
from surgery.gguf.rewrite import GGUFPlan


def logits_after(plan: GGUFPlan, tokens: Sequence[int]) -> tuple[NDArray[np.float32] | None, str]:
    """The logits of every position after the plan's recipe, (T, n_vocab), or None with the reason."""
    try:
        model = operate_with_donors(lift(open_gguf(plan.file.header.path)), plan.recipe)
    except InputError as error:
        return None, f"there is no torch reference of this file ({error})"
    # torch, which the reference runs on, takes seconds to load.
    import torch

    from gguf_tools.evaluation.transformers_model import fits
    from gguf_tools.reference import Reference

    if not fits(model.parameters, 8):
        return None, "there is not enough memory for the torch reference"
    return Reference(model, torch.float64).logits([tuple(tokens)])[0].astype(np.float32), ""
