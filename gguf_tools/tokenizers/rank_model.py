"""Llama 3's `tokenizer.model`: tiktoken's list of byte strings and their ranks, as what tokenizer.json would hold.

Source: openai/tiktoken, `load.py` (a line holds base64 and a rank) and `_educational.py` (the pair whose joined bytes have the
lowest rank is merged first; a whole piece that has a rank is one token); meta-llama/llama-models, `models/llama3/tokenizer.py`
(the expression that cuts a text and the special tokens, which the file does not hold).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError
from gguf_tools.text import shortened
from gguf_tools.tokenizers.byte_level import byte_characters

LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,9}")
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>", "<|image|>",
)  # fmt: skip
RESERVED = 256
"""Special tokens in all; those without a name are `<|reserved_special_token_N|>`, with N from 2."""
LONGEST = 512
"""Bytes of a token; the longest known ones have 128."""


def is_rank_model(data: bytes) -> bool:
    """Whether a file begins with a line of base64 and a rank."""
    return LINE.fullmatch(data[:4096].split(b"\n", 1)[0].rstrip(b"\r")) is not None


def put_together(data: bytes, path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What tokenizer.json would hold, and `config` with Llama 3's own special tokens.

    Raises CheckpointError where a line is broken, a rank is left out or a byte has no token.
    """
    ranks = _ranks(data, path)
    named = [*SPECIAL, *(f"<|reserved_special_token_{2 + n}|>" for n in range(RESERVED - len(SPECIAL)))]
    own = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "add_bos_token": True}
    return document(ranks, PATTERN, {text: len(ranks) + n for n, text in enumerate(named)}), {**own, **config}


def document(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> dict[str, Any]:
    """What tokenizer.json would hold of byte strings with their ranks, a pattern that cuts a text, and special tokens."""
    spelling = byte_characters()
    vocab = {"".join(spelling[byte] for byte in token): rank for token, rank in ranks.items()}
    flags = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": _merges(ranks, spelling)},
    }


def _merges(ranks: Mapping[bytes, int], spelling: Sequence[str]) -> list[list[str]]:
    """Every way to put a token together from two others, by the rank of the token."""

    def text(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [[text(left), text(right)] for _, _, left, right in sorted(known)]
    return merges


def _ranks(data: bytes, path: Path) -> dict[bytes, int]:
    """The file's byte strings with their ranks, which have to be 0, 1, 2, …"""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        shown = shortened(repr(line[:60]))
        if LINE.fullmatch(line) is None:
            raise CheckpointError(f"{path}: line {number} is {shown}; expected base64 and a rank")
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise CheckpointError(f"{path}: line {number} is {shown}, which is not base64 ({error})") from error
        if int(rank) != len(ranks) or token in ranks or not 0 < len(token) <= LONGEST:
            raise CheckpointError(
                f"{path}: line {number} is {shown}; expected a token of its own of 1 to {LONGEST} bytes with the "
                f"rank {len(ranks)}"
            )
        ranks[token] = len(ranks)
    check_bytes(ranks, path)
    return ranks


def check_bytes(ranks: Mapping[bytes, int], path: Path) -> None:
    """Raise CheckpointError unless every byte has a token."""
    lacking = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if lacking is not None:
        raise CheckpointError(f"{path}: has no token for the byte {lacking}; download it again")
