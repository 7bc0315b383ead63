"""Heads other than the output projection, such as the value head of reinforcement learning or a reward model's score."""

from __future__ import annotations

import re
from dataclasses import replace

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.sources.tying import OUTPUT, ties

VALUE = re.compile(r"(v_head|value_head|reward_head|critic_head)\..*")
"""Heads added to a language model for reinforcement learning (TRL: AutoModelForCausalLMWithValueHead)."""
CLASSIFICATION = re.compile(r"(score|classifier|classification_head|regression_head|qa_outputs)\..*")
"""Heads that replace the output projection (transformers' `…ForSequenceClassification` and similar classes)."""


def leave_heads_out(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without such heads, which the language model does not use.

    Raises UnsupportedError for a classification head without an output projection, unless the config ties the embedding.
    """
    found = [name for name in checkpoint.tensors if VALUE.fullmatch(name) or CLASSIFICATION.fullmatch(name)]
    if not found:
        return checkpoint
    instead = next((name for name in found if CLASSIFICATION.fullmatch(name)), None)
    if instead and OUTPUT not in checkpoint.tensors and not ties(checkpoint.config):
        raise UnsupportedError(
            f"{checkpoint.path}: is a classification model ({instead} exists, {OUTPUT} is missing); expected a language model; "
            "give the language model that it was trained from"
        )
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in found}
    note = f"{', '.join(found[:2])} (a value or classification head) is left out: the language model does not use it"
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))
