"""Tokens on which an approximation is fitted and measured: of the built-in text, or of the user's own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from gguf_tools.errors import InputError
from gguf_tools.formats.text_file import Kind, read_text
from gguf_tools.rewrites.approximations import Tokens
from gguf_tools.tokenizers.vocabulary import Tokenizer

SEQUENCE = 256
"""Tokens in a sequence, where the model's context allows it."""
LIMIT = 4096
"""Tokens in all; more do not move a fit of one number a layer, and the reference needs time for each."""


def calibration_text(path: Path | None) -> str:
    """The text of a file, or the built-in one: prose, code, tables, numbers and a few languages."""
    if path is None:
        return resources.files("gguf_tools.conversion").joinpath("data/calibration.txt").read_text("utf-8")
    text = read_text(path, Kind.TEXT, InputError)
    if not text.strip():
        raise InputError(f"{path}: is empty; --calibration takes text like that which the model will meet")
    return text


def calibration_tokens(tokenizer: Tokenizer, context_length: int, path: Path | None = None) -> Tokens:
    """The text's tokens in sequences as long as the model's context allows, with BOS where the tokenizer puts it."""
    ids = tokenizer.encode(calibration_text(path), special=True)[:LIMIT]
    head = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    step = max(1, min(SEQUENCE, context_length) - len(head))
    return [[*head, *ids[start : start + step]] for start in range(0, len(ids), step)]
