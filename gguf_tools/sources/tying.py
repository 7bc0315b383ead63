"""Whether a config ties the output projection to the token embedding."""

from __future__ import annotations

from collections.abc import Mapping

TIE = "tie_word_embeddings"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


def ties(config: Mapping[str, object]) -> bool | None:
    """Whether a config ties output projection and token embedding; None if it does not say.

    A model with a vision tower has two configs, its own and its text model's (`text_config`). Programs set only one of them
    (transformers 4 the inner, transformers 5 the outer) and leave the other at its default, so true in either counts.
    """
    text = config.get("text_config")
    levels = (config, text) if isinstance(text, Mapping) else (config,)
    stated = [level[TIE] for level in levels if isinstance(level.get(TIE), bool)]
    return any(stated) if stated else None
