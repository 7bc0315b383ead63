"""Reads "slow" tokenizers (written in Python), saved as vocab.json and merges.txt without tokenizer.json.

The two files hold the vocabulary; how text is split before merging is defined by the code of the class that
tokenizer_config.json names. Source: transformers, `models/gpt2`, `models/codegen`, `models/qwen2`, `models/qwen3_5`
(tokenization_*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, TokenizerError
from gguf_tools.text import shortened

VOCAB = "vocab.json"
MERGES = "merges.txt"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = "additional_special_tokens"

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?%s+|\p{N}| ?[^\s%s]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # fmt: skip
QWEN2 = _QWEN % (r"\p{L}", r"\p{L}\p{N}")
QWEN35 = _QWEN % (r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}")
REGEX: Mapping[str, str | None] = {
    "GPT2Tokenizer": None,
    "CodeGenTokenizer": None,
    "Qwen2Tokenizer": QWEN2,
    "Qwen3_5Tokenizer": QWEN35,
}
"""Tokenizer class → the regex that splits a text; None is the regex of ByteLevel (GPT-2's)."""
OF_MODELS = {
    "gpt2": "GPT2Tokenizer",
    "codegen": "CodeGenTokenizer",
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
}
"""model_type → the class that transformers uses if tokenizer_config.json names none."""
DEFAULT_END = "<|endoftext|>"
"""The default EOS of all these classes; also the default BOS of GPT-2 and CodeGen."""


def is_slow(folder: Path) -> bool:
    """Whether the folder has vocab.json and merges.txt."""
    return (folder / VOCAB).exists() and (folder / MERGES).exists()


def put_together(
    folder: Path, vocab: Mapping[str, Any], merges: str, config: Mapping[str, Any], model_config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The equivalent tokenizer.json, without added tokens, and `config` with the default tokens of the class.

    `vocab` and `merges` are the contents of vocab.json and merges.txt. Raises TokenizerError for a tokenizer class that is
    not in `REGEX`.
    """
    name = config.get("tokenizer_class") or OF_MODELS.get(str(model_config.get("model_type")))
    plain = str(name or "").removesuffix("Fast")
    if plain not in REGEX:
        found = f"the tokenizer's class is {shortened(plain)}" if plain else "no file names the tokenizer's class"
        raise TokenizerError(
            f"{folder}: has {VOCAB} and {MERGES} but no tokenizer.json, and {found}; expected one of {', '.join(REGEX)}; name it "
            'in tokenizer_config.json, such as {"tokenizer_class": "GPT2Tokenizer"}, or create tokenizer.json with '
            "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    prefix = bool(config.get("add_prefix_space"))
    regex = REGEX[plain]
    bytes_step = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex is None}
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [split, bytes_step]} if regex else bytes_step
    document = {
        "normalizer": {"type": "NFC"} if regex else None,
        "pre_tokenizer": steps,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": dict(vocab), "merges": _lines(folder, merges)},
    }
    roles = ("eos_token",) if regex else ("bos_token", "eos_token")
    return document, {**dict.fromkeys(roles, DEFAULT_END), **config}


def _lines(folder: Path, text: str) -> list[list[str]]:
    """The merges of merges.txt as pairs of tokens, without the version line and empty lines."""
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise CheckpointError(
                f"{folder / MERGES}: line {number} is {line[:60]!r}; expected two tokens separated by a space"
            )
        pairs.append(parts)
    return pairs


def special_texts(*sources: Mapping[str, Any]) -> frozenset[str]:
    """The texts that have a role (`bos_token` and so on) in the tokenizer's files, which makes them special tokens."""
    found = set()
    for source in sources:
        more = source.get(MORE)
        for value in (*(source.get(role) for role in ROLES), *(more if isinstance(more, list) else ())):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text:
                found.add(text)
    return frozenset(found)
