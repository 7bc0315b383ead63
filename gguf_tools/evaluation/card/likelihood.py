"""Log-likelihoods of several continuations of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_tools.evaluation.prompts import prompt_ids
from gguf_tools.runtime.interface import RuntimeLike


def log_likelihoods(runtime: RuntimeLike, prompt: str, continuations: Sequence[str]) -> list[float] | None:
    """The log-likelihood of each text after the prompt, in nats; None if one does not fit into the context.

    Prompt and continuation are tokenized together. All tokens count that do not belong to the prompt alone, and earlier ones in
    which the texts differ, so that a token across the boundary is no advantage for one of them.
    """
    ids = [prompt_ids(runtime, prompt + text) for text in continuations]
    if max(map(len, ids)) > runtime.context_limit:
        return None
    shared = next((n for n, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), min(map(len, ids)))
    start = max(min(shared, len(prompt_ids(runtime, prompt)), min(map(len, ids)) - 1), 1)
    return [found.value for found in runtime.log_likelihoods([(one[:start], one[start:]) for one in ids])]
