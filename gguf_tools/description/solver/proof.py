"""Holds the reference of the written description against all logits, those of the sequence held out by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gguf_tools.description.solver.evidence import Evidence
from gguf_tools.description.solver.solution import Solution
from gguf_tools.model.spec import Model
from gguf_tools.reference import Reference
from gguf_tools.tensors.error import ratio

SMALL = 200_000_000
"""Weights of a model whose reference runs in float64."""


def prove(solution: Solution, model: Model, given: Evidence) -> Solution:
    """The solution with the NMSE of the model's reference over the whole vocabulary; a failed one where that is too large."""
    reference = Reference(model, torch.float64 if model.parameters < SMALL else torch.float32)
    error = _nmse(reference, given, given.seen)
    held = _nmse(reference, given, [given.held]) if given.held is not None else None
    proved = replace(solution, error=error, held=held)
    if error > max(10 * given.floor, 3 * solution.error):
        text = "the written description computes other logits than the solver; please report this"
        return replace(proved, stage="proof", reason=text)
    return proved


def _nmse(reference: Reference, given: Evidence, chosen: Sequence[int]) -> float:
    """Σ|logits − golden|² / Σ|golden|² over the chosen sequences."""
    difference = energy = 0.0
    for n in chosen:
        (ours,) = reference.logits([given.sequences[n]])
        theirs = given.logits[n].astype(np.float64)
        difference += float(np.square(ours - theirs).sum())
        energy += float(np.square(theirs).sum())
    return ratio(difference, energy)
