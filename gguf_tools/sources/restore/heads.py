"""Heads beside the output projection: a value head of reinforcement learning, a reward model's score."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import OUTPUT, ties

VALUE = re.compile(r"(v_head|value_head|reward_head|critic_head)\..*")
"""Heads of a language model that is trained further (TRL: AutoModelForCausalLMWithValueHead)."""
CLASSIFICATION = re.compile(r"(score|classifier|classification_head|regression_head|qa_outputs)\..*")
"""Heads that stand in the place of the output projection (transformers: …ForSequenceClassification and its like)."""


def leave_heads_out(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without such heads, which the language model does not use.

    Raises UnsupportedError for a classification head where there is no output projection and the config ties none.
    """
    found = [name for name in checkpoint.tensors if VALUE.fullmatch(name) or CLASSIFICATION.fullmatch(name)]
    if not found:
        return checkpoint
    instead = next((name for name in found if CLASSIFICATION.fullmatch(name)), None)
    if instead and OUTPUT not in checkpoint.tensors and not ties(checkpoint.config):
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {instead} makes it a model for classification, and {OUTPUT} is missing; only language "
            "models are converted"
        )
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in found}
    note = f"the head beside the output projection ({', '.join(found[:2])}) is left out: the language model does not use it"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))
