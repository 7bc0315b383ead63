"""Refuses models with bidirectional attention, by their config: encoders, embedding models, diffusion language models.

Their tensors look like a decoder's, but llama.cpp would apply a causal mask to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gguf_tools.errors import UnsupportedError
from gguf_tools.sources.checkpoint import CONFIG, Checkpoint
from gguf_tools.text import shortened

TYPES = re.compile(
    r"a2d[-_].*|.*bert.*|.*electra.*|.*bidirec.*|.*diffu.*|deberta.*|dream.*|llada.*|mmada.*|nomic.*|rnd1.*|sdar.*|xlm.*",
    re.IGNORECASE,
)
"""Full matches of model_type: encoders, and diffusion language models (Dream, LLaDA, SDAR, RND1, MMaDA, DiffuLLaMA)."""
CLASSES = re.compile(
    r"(Dream|LLaDA|SDAR|RND1|MMaDA|A2D).*|.*(Bidirec|Diffu|ForMaskedLM|ForMaskedDiffusion).*", re.IGNORECASE
)
"""Full matches of a name in `architectures`."""


def refuse_bidirectional(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedError, naming the config key, if the config says that attention is bidirectional."""
    for key, value in _signs(checkpoint):
        raise UnsupportedError(
            f"{checkpoint.folder / CONFIG}: {key} is {shortened(repr(value))}: attention is not causal (an encoder or a "
            "diffusion language model), which is not supported"
        )


def _signs(checkpoint: Checkpoint) -> Iterator[tuple[str, object]]:
    """The config keys, with their values, that say attention is bidirectional."""
    config = checkpoint.config
    kind, classes = config.get("model_type"), config.get("architectures")
    if isinstance(kind, str) and TYPES.fullmatch(kind):
        yield "model_type", kind
    for name in classes if isinstance(classes, list) else ():
        if isinstance(name, str) and CLASSES.fullmatch(name):
            yield "architectures", name
    if config.get("is_causal") is False:
        yield "is_causal", False
    if config.get("use_bidirectional_attention") not in (None, False, "vision"):
        yield "use_bidirectional_attention", config["use_bidirectional_attention"]
