"""What a config says of tying: whether the output projection is the embedding."""

from __future__ import annotations

from collections.abc import Mapping

TIE = "tie_word_embeddings"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


def ties(config: Mapping[str, object]) -> bool | None:
    """Whether a config ties the two, None where it does not say.

    A model with a vision tower has two configs, its own and its text model's (`text_config`), and programs set either of them
    (transformers 4 the inner one, 5 the outer one), leaving the other at its default. So one that says true is believed.
    """
    text = config.get("text_config")
    levels = (config, text) if isinstance(text, Mapping) else (config,)
    stated = [level[TIE] for level in levels if isinstance(level.get(TIE), bool)]
    return any(stated) if stated else None
