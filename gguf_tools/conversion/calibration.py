"""Calibration tokens, on which an approximation is fitted and measured: from the built-in text or the user's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.rewrites.approximations import Tokens
from gguf_tools.tokenizers.vocabulary import Tokenizer

SEQUENCE = 256
"""Tokens per sequence, if the model's context length allows it."""
LIMIT = 4096
"""Total number of tokens; more would not change a fit of one number per layer, but take the reference more time."""


def calibration_text(path: Path | None) -> str:
    """The text of a file, or the built-in text: prose, code, tables, numbers and a few languages."""
    if path is None:
        return resources.files("gguf_tools.conversion").joinpath("data/calibration.txt").read_text("utf-8")
    text = read_text(path, Kind.TEXT, InputError)
    if not text.strip():
        raise InputError(f"{path}: is empty; give --calibration a text like those that the model will be used on")
    return text


def calibration_tokens(tokenizer: Tokenizer, context_length: int, path: Path | None = None) -> Tokens:
    """The text's tokens, in sequences no longer than the model's context, each with BOS if the tokenizer adds it."""
    ids = tokenizer.encode(calibration_text(path), special=True)[:LIMIT]
    head = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    step = max(1, min(SEQUENCE, context_length) - len(head))
    return [[*head, *ids[start : start + step]] for start in range(0, len(ids), step)]
